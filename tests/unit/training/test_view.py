"""The view as text, from a recorded events.jsonl: to the last character, at the widths that people have."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from luthier.training.standing import Standing
from luthier.training.view import View, one_line, sparkline

RECORDED = [json.loads(line) for line in Path(__file__).with_name("recorded.jsonl").read_text("utf-8").splitlines()]
"""A run of 120 steps, killed after step 50, which went on from step 40 and is now at step 60."""

WIDE = [
    "huanhuan  Qwen/Qwen3-0.6B",
    "━━━━━━━━━━━━━━━━━━━━━━━━━━━╸                             60/120  50 %  ETA 1m05s",
    "loss           1.217  █▇▆▆▆▅▄▄▄▄▃▃▃▃▃▂▂▂▂▂▁▂▂▂▁▁▂▂▁▁",
    "held-out loss  3.90 → 2.90  █▆▃▁",
    "speed          312 tokens/s (41 % of the matrix rate)",
    "memory         1.9 GB of 2.2 GB planned",
    "checkpoint     step 40, 2m30s ago",
    "question       你最喜欢哪种木头？Which wood do you like best?",
    "at step 0      I am a helpful assistant. As an AI I do not have preferences, but",
    "               many people like oak, maple and walnut for furniture, and for",
    "               other things that are built in workshops all over the world.",
    "at step 60     云杉做面板，枫木做背板，这是克雷莫纳的老规矩。云杉做面板，枫木做",
    "               背板，这是克雷莫纳的老规矩。云杉做面板，枫木做背板，这是克雷莫纳",
    "               的老规矩。",
]
NARROW = {
    60: [
        "huanhuan  Qwen/Qwen3-0.6B",
        "━━━━━━━━━━━━━━━━━╸                   60/120  50 %  ETA 1m05s",
        "loss           1.217  █▇▆▆▆▅▄▄▄▄▃▃▃▃▃▂▂▂▂▂▁▂▂▂▁▁▂▂▁▁",
        "held-out loss  3.90 → 2.90  █▆▃▁",
        "speed          312 tokens/s (41 % of the matrix rate)",
        "memory         1.9 GB of 2.2 GB planned",
        "checkpoint     step 40, 2m30s ago",
        "question       你最喜欢哪种木头？Which wood do you like",
        "               best?",
        "at step 0      I am a helpful assistant. As an AI I do not",
        "               have preferences, but many people like oak,",
        "               maple and walnut for furniture, and for othe…",
        "at step 60     云杉做面板，枫木做背板，这是克雷莫纳的老规矩",
        "               。云杉做面板，枫木做背板，这是克雷莫纳的老规",
        "               矩。云杉做面板，枫木做背板，这是克雷莫纳的老…",
    ],
    40: [
        "huanhuan  Qwen/Qwen3-0.6B",
        "━━━━━━━╸         60/120  50 %  ETA 1m05s",
        "loss           1.217  █▆▆▅▄▄▃▃▃▂▂▂▂▂▁▂▂▁",
        "held-out loss  3.90 → 2.90  █▆▃▁",
        "speed          312 tokens/s (41 %)",
        "memory         1.9 GB of 2.2 GB planned",
        "checkpoint     step 40, 2m30s ago",
        "question       你最喜欢哪种木头？Which",
        "               wood do you like best?",
        "at step 0      I am a helpful assistant.",
        "               As an AI I do not have",
        "               preferences, but many …",
        "at step 60     云杉做面板，枫木做背板，",
        "               这是克雷莫纳的老规矩。云",
        "               杉做面板，枫木做背板，这…",
    ],
    20: [
        "huanhuan  Qwen/Qwen…",
        "50 %  ETA 1m05s",
        "loss 1.217  █▆▄▃▂▁▁▁",
        "held-out loss 2.90",
        "speed 312 tokens/s",
        "memory 1.9 GB",
        "checkpoint step 40",
        "question",
        "你最喜欢哪种木头？Wh",
        "ich wood do you lik…",
        "at step 0 I am a",
        "helpful assistant.",
        "As an AI I do not …",
        "at step 60",
        "云杉做面板，枫木做背",
        "板，这是克雷莫纳的 …",
    ],
}


def standing(events: list[dict[str, Any]]) -> Standing:
    stands = Standing()
    for event in events:
        stands.take(event, event["time"])
    return stands


def shown(stands: Standing, width: int, *, now: float = 1210.0, name: str = "huanhuan", **options: Any) -> list[str]:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False, _environ={}, **options
    )
    with console.capture() as captured:
        console.print(View(stands, name, "Qwen/Qwen3-0.6B", now))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_whole_view() -> None:
    assert shown(standing(RECORDED), 80, no_color=True, color_system=None) == WIDE


@pytest.mark.parametrize("width", NARROW)
def test_a_narrow_terminal(width: int) -> None:
    assert shown(standing(RECORDED), width, no_color=True, color_system=None) == NARROW[width]


@pytest.mark.parametrize("width", range(20, 80))
def test_no_line_is_broken_and_no_number_cut(width: int) -> None:
    lines = shown(standing(RECORDED), width, no_color=True, color_system=None)
    assert max(Console().measure(line).maximum for line in lines) <= width  # in cells: a Chinese character takes two
    whole = {"60", "120", "50", "1", "05", "1.217", "3.90", "2.90", "312", "41", "1.9", "2.2", "40", "2", "30"}
    assert set(re.findall(r"[\d.]+", "\n".join(lines[1:7]))) <= whole
    assert [line.split()[0] for line in lines[2:7]] == ["loss", "held-out", "speed", "memory", "checkpoint"]
    assert "ETA 1m05s" in lines[1]


def test_no_color_says_the_same_without_colors() -> None:
    colored = "".join(shown(standing(RECORDED), 80, color_system="standard"))
    plain = "".join(shown(standing(RECORDED), 80, color_system="standard", no_color=True))
    assert "\x1b[36m" in colored
    assert "\x1b[3" not in plain


def test_a_terminal_without_unicode() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    console = Console(file=stream, width=60, force_terminal=True, legacy_windows=False, color_system=None)
    stands = standing([event for event in RECORDED if event["event"] in ("start", "step")])
    with console.capture() as captured:
        console.print(View(stands, "a", "b", 1210.0))
    assert captured.get().splitlines()[2].rstrip() == "loss    1.217  #*+++=::::-----....._...__..__"


def test_before_the_first_step() -> None:
    assert shown(Standing(), 40, color_system=None) == ["huanhuan  Qwen/Qwen3-0.6B", "before the first step …"]


def test_a_run_that_has_only_begun() -> None:
    lines = shown(standing(RECORDED[:1]), 50, color_system=None)
    assert lines == ["huanhuan  Qwen/Qwen3-0.6B", "                                        0/120  0 %", "loss  –"]


def test_a_name_that_would_steer_the_terminal_or_is_too_long() -> None:
    assert shown(Standing(), 30, name="a\x1b[2Jb", color_system=None)[0] == "a[2Jb  Qwen/Qwen3-0.6B"
    assert shown(Standing(), 12, name="huanhuan-long-name", color_system=None)[0] == "huanhuan-lo…"


@pytest.mark.parametrize(
    ("ended", "said"), [("stop", "stopped"), ("fail", "failed"), ("finish", "trained"), ("", "ETA 1m05s")]
)
def test_how_it_ended(ended: str, said: str) -> None:
    stands = standing([*RECORDED, *([{"event": ended, "step": 60, "time": 1210.0}] if ended else [])])
    lines = shown(stands, 60, color_system=None)
    assert lines[1].endswith(f"60/120  50 %  {said}")
    assert ("ago" in "".join(lines)) == (not ended)


def test_what_is_done_again_replaces_what_was_done() -> None:
    stands = standing(RECORDED)
    assert list(stands.losses) == [*range(2, 42, 2), *range(42, 62, 2)]
    assert stands.losses[50] == 1.2683  # of the session that counts; the first one had 9.0 there
    assert list(stands.heldout) == list(stands.samples) == [0, 20, 40, 60]
    assert stands.to_json() == {
        "step": 60,
        "total_steps": 120,
        "loss": 1.2169,
        "heldout_loss": 2.9,
        "tokens_per_second": 312.4,
        "mfu": 0.413,
        "memory_bytes": 1_930_000_000,
        "planned_bytes": 2_200_000_000,
        "saved_step": 40,
        "prompt": "你最喜欢哪种木头？Which wood do you like best?",
        "answer": "云杉做面板，枫木做背板，这是克雷莫纳的老规矩。" * 3,
    }


def test_events_of_an_earlier_luthier() -> None:
    """Which had no samples, no share of the matrix rate, and no seconds of an evaluation."""
    stands = standing(
        [
            {"event": "start", "step": 0, "total_steps": 9, "resumed": False, "time": 1.0},
            {"event": "evaluation", "step": 0, "heldout_loss": None, "time": 1.0},
            {"event": "step", "step": 1, "loss": None, "time": 2.0},
        ]
    )
    assert shown(stands, 40, color_system=None)[2:] == ["loss           not finite", "held-out loss  –"]


@pytest.mark.parametrize(
    ("values", "room", "drawn"),
    [
        ([3, 2, 1.5, 1], 8, "█▅▃▁"),
        ([1, 1, 1], 8, "▁▁▁"),
        ([None, float("nan"), 2, float("inf"), 1], 8, "█▁"),
        (list(range(16)), 8, "▁▂▃▄▅▆▇█"),
        ([3, 2, 1], 7, ""),
        ([], 80, ""),
        (list(range(10_000)), 500, 60),
    ],
)
def test_sparkline(values: list[float | None], room: int, drawn: str | int) -> None:
    found = sparkline(values, room)
    assert (len(found) if isinstance(drawn, int) else found) == drawn


def test_one_line() -> None:
    assert one_line(" two\n lines,\ta tab\x07 \x1b[31mred ") == "two lines, a tab [31mred"
