from __future__ import annotations

import io
import sys
import threading
import time
from typing import Any

import pytest

from luthier import console
from luthier.training.display import Display

START = {"event": "start", "step": 0, "total_steps": 120, "resumed": False, "time": 1000.0}


def step(number: int, at: float, **more: Any) -> dict[str, Any]:
    facts = {"loss": 2.3119, "tokens_per_second": 312.4, "mfu": 0.413, "memory_bytes": 1_930_000_000}
    return {"event": "step", "step": number, "time": at, **facts, **more}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def sit_down(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in place of standard output. Not a fixture: pytest sets standard output anew after those."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "90"), ("LINES", "30")):
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return screen


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("huanhuan", "Qwen/Qwen3-0.6B") as display:
        for event in (
            START,
            {"event": "evaluation", "step": 0, "heldout_loss": 3.914},
            step(5, 1010.0),
            step(10, 1016.0),
            {"event": "evaluation", "step": 20, "heldout_loss": 2.051},
            {"event": "sample", "step": 20, "prompt": "你是谁？", "answer": "我是\n甄嬛\x1b[2J。"},
            {"event": "save", "step": 20, "path": "checkpoints/checkpoint-20"},
            {"event": "sample", "step": 40, "prompt": "你是谁？", "answer": ""},
            {"event": "something new", "step": 20},
            step(20, 1040.0, loss=float("nan"), memory_bytes=None, tokens_per_second=61_234.0, mfu=None),
            {"event": "stop", "step": 57, "reason": "Ctrl-C"},
        ):
            display.event(event)
    assert capsys.readouterr().out.splitlines() == [
        "held-out loss 3.91 at step 0",
        "step 5/120  loss 2.312  312 tokens/s (41 % of the matrix rate)  1.9 GB",
        "step 10/120  loss 2.312  312 tokens/s (41 % of the matrix rate)  1.9 GB  ETA 2m12s",
        "held-out loss 2.05 at step 20",
        "asked: 你是谁？",
        "answer at step 20: 我是 甄嬛[2J。",
        "saved checkpoints/checkpoint-20",
        "answer at step 40: ",
        "step 20/120  loss not finite  61,234 tokens/s  ETA 3m20s",
        "stopped at step 57: Ctrl-C",
    ]


def test_plain_lines_of_a_run_that_goes_on_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("huanhuan", "Qwen/Qwen3-0.6B") as display:
        display.event({**START, "step": 50, "resumed": True})
        display.event(step(51, 1010.0, loss=None))
        display.event(step(52, 1012.0))
        display.event({"event": "fail", "step": 52, "reason": "out of memory"})
        display.event({"event": "finish", "step": 120})
    assert capsys.readouterr().out.splitlines() == [
        "going on from step 50 of 120",
        "step 51/120  loss not finite  312 tokens/s (41 % of the matrix rate)  1.9 GB",
        "step 52/120  loss 2.312  312 tokens/s (41 % of the matrix rate)  1.9 GB  ETA 2m16s",
        "failed at step 52: out of memory",
    ]


def test_json_keeps_standard_output_free(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_json", True)
    with Display("huanhuan", "Qwen/Qwen3-0.6B") as display:
        display.event(START)
        display.event(step(1, 1001.0))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "step 1/120  loss 2.312  312 tokens/s (41 % of the matrix rate)  1.9 GB\n"


def test_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = sit_down(monkeypatch)
    now = time.time()
    with Display("huanhuan", "Qwen/Qwen3-0.6B") as display:
        display.event({**START, "time": now})
        display.event({"event": "evaluation", "step": 0, "heldout_loss": 3.91})
        display.event(step(10, now))
        display.event({"event": "evaluation", "step": 10, "heldout_loss": 2.87})
        display.event(step(60, now + 50))
        display.event({"event": "stop", "step": 60, "reason": "Ctrl-C"})
    last = terminal.getvalue().split("stopped at step 60: Ctrl-C")[1]
    assert "60/120" in last
    assert "3.91 → 2.87" in last
    assert "stopped" in last
    assert "step 10/120  loss" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_a_terminal_that_takes_nothing_holds_no_event_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-S, or a slow line: what is drawn waits, and the training does not."""
    terminal = sit_down(monkeypatch)
    taking, drawing = threading.Event(), threading.Event()

    def write(text: str) -> int:
        if not taking.is_set():
            drawing.set()
            assert taking.wait(60)
        return io.StringIO.write(terminal, text)

    display = Display("huanhuan", "Qwen/Qwen3-0.6B")
    with display:
        monkeypatch.setattr(terminal, "write", write)
        assert drawing.wait(60)
        display.event(START)
        for number in range(1, 100):
            display.event(step(number, 1000.0 + number))
        assert (display.standing.step, taking.is_set()) == (99, False)
        taking.set()
    assert "99/120" in terminal.getvalue()


@pytest.mark.parametrize("reason", ["TERM", "--plain"])
def test_a_terminal_that_cannot_draw_and_one_that_shall_not(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    terminal = sit_down(monkeypatch)
    if reason == "TERM":
        monkeypatch.setenv("TERM", "dumb")
    else:
        monkeypatch.setattr(console, "_lines_only", True)
    with Display("huanhuan", "Qwen/Qwen3-0.6B") as display:
        display.event(START)
        display.event(step(1, 1001.0, mfu=None))
    assert terminal.getvalue() == "step 1/120  loss 2.312  312 tokens/s  1.9 GB\n"


def test_live_view_before_anything_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = sit_down(monkeypatch)
    display = Display("huanhuan", "Qwen/Qwen3-0.6B")
    with display:
        pass
    display.close()
    assert "before the first step …" in terminal.getvalue()


def test_the_view_is_closed_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = sit_down(monkeypatch)
    with pytest.raises(ZeroDivisionError), Display("huanhuan", "") as display:
        display.event(START)
        raise ZeroDivisionError
    assert terminal.getvalue().endswith("\x1b[?25h")
    assert sys.stdout is terminal
