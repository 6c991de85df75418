"""events.jsonl as it looks to a reader while it is written, cut off, damaged and begun anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.report.record import RunFolder
from luthier.report.tail import Tail


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "one").create()


def steps(tail: Tail, *, to_the_end: bool = False) -> list[int] | None:
    new = tail.read(to_the_end=to_the_end)
    return None if new is None else [event["step"] for event in new]


def append(run: RunFolder, text: bytes) -> None:
    with run.events_file.open("ab") as file:
        file.write(text)


def test_each_event_comes_once(run: RunFolder) -> None:
    tail = Tail(run)
    assert steps(tail) == []  # no file yet
    run.log({"event": "step", "step": 1})
    run.log({"event": "step", "step": 2})
    assert steps(tail) == [1, 2]
    assert steps(tail) == []
    run.log({"event": "step", "step": 3})
    assert steps(tail) == [3]


def test_half_a_line_waits_for_its_other_half(run: RunFolder) -> None:
    tail = Tail(run)
    append(run, '{"event": "sample", "step": 1, "answer": "云'.encode()[:-1])
    assert steps(tail) == []
    append(run, '云"}\n{"event"'.encode()[2:])
    assert steps(tail) == [1]
    assert steps(tail, to_the_end=True) == []
    assert tail.damaged == 0


def test_the_last_line_of_a_killed_run(run: RunFolder) -> None:
    """Whole but for its end it counts, and once; the next session completes it."""
    append(run, b'{"event": "step", "step": 1}\n{"event": "step", "step": 2}')
    tail = Tail(run)
    assert steps(tail) == [1]
    assert steps(tail, to_the_end=True) == [2]
    again = Tail(run)
    run.log({"event": "step", "step": 3})
    assert steps(again) == [1, 2, 3]


def test_what_the_next_session_cuts_off_was_never_read(run: RunFolder) -> None:
    tail = Tail(run)
    run.log({"event": "step", "step": 1})
    append(run, b'{"event": "step", "st')
    assert steps(tail) == [1]
    run.log({"event": "step", "step": 2})
    assert steps(tail) == [2]
    assert tail.damaged == 0


@pytest.mark.parametrize(
    "garbage", [b"garbage", b"\0\0\0\xff", b"17", b'{"event": 1}', b'{"event": "step", "step": "x"}']
)
def test_garbled_lines_are_passed_over_and_counted(run: RunFolder, garbage: bytes) -> None:
    append(run, b'{"event": "step", "step": 1}\n' + garbage + b'\n{"event": "step", "step": 2}\n')
    tail = Tail(run)
    assert steps(tail) == [1, 2]
    assert tail.damaged == 1


def test_a_run_that_is_begun_anew(run: RunFolder) -> None:
    tail = Tail(run)
    run.log({"event": "start", "step": 0, "time": 1.0})
    assert steps(tail) == [0]
    run.events_file.unlink()
    assert steps(tail) is None
    assert steps(tail) == []
    for step in range(9):  # longer than what was there before, so that its size says nothing
        run.log({"event": "step", "step": step, "time": 2.0})
    assert steps(tail) == list(range(9))


def test_a_run_that_is_begun_anew_between_two_looks(run: RunFolder) -> None:
    tail = Tail(run)
    run.log({"event": "start", "step": 0, "time": 1.0})
    assert steps(tail) == [0]
    run.clear()
    run.log({"event": "start", "step": 0, "time": 2.0})
    run.log({"event": "step", "step": 1})
    assert steps(tail) is None
    assert steps(tail) == [0, 1]
