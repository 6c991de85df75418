"""Planned against actual, over all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.training.forecast import calibration

PLAN: dict[str, Any] = {
    "time": 5.0,
    "device": "cpu",
    "dtype": "float32",
    "memory": {"measurable_bytes": 1100},
    "seconds": {"steps": 9.0, "unplanned": 2.0, "total": 20.0},
    "tokens": {"steps": 3, "real": 1, "padded": 1, "computed": 1, "run_real": 70, "run_computed": 50},
    "peak_before": 100,
}
RESULT = {"peak_memory_bytes": 1000, "seconds": 10.0, "total_seconds": 25.0, "steps": 3}


def entry(planned: float | None, actual: float | None) -> dict[str, Any]:
    both = ({"peak_memory_bytes": value, "seconds": None, "total_seconds": None} for value in (planned, actual))
    return dict(zip(("run", "planned", "actual"), ("runs/a", *both), strict=True))


def test_figures_have_the_names_of_the_result() -> None:
    figures = {"peak_memory_bytes": 1100, "seconds": 9.0, "total_seconds": 20.0}
    tokens = {"computed_tokens": 50, "real_tokens": 70, "steps": 3}
    assert calibration.figures(PLAN) == {**figures, **tokens}
    unknown = dict.fromkeys([*figures, *tokens])
    assert calibration.figures({**PLAN, "seconds": None, "tokens": None}) == {**unknown, "peak_memory_bytes": 1100}


def test_what_is_compared() -> None:
    assert calibration.compared(PLAN, RESULT) == {
        "time": 5.0,
        "device": "cpu",
        "dtype": "float32",
        "planned": {"peak_memory_bytes": 1100, "seconds": 9.0, "total_seconds": 20.0},
        "unplanned": 2.0,
        "actual": {"peak_memory_bytes": 1000, "seconds": 10.0, "total_seconds": 25.0},
    }


def test_a_peak_of_something_else_is_no_peak_of_the_run() -> None:
    before = {**PLAN, "peak_before": 1000}
    assert calibration.compared(before, RESULT)["actual"]["peak_memory_bytes"] is None


def test_the_history_in_the_cache(own_cache: Path) -> None:
    assert calibration.history() == []
    calibration.remember(entry(110, 100))
    with calibration.history_file().open("a") as file:
        file.write('half a li\n["no entry"]\n')
    calibration.remember(entry(80, 100))
    assert calibration.history_file() == own_cache / "calibration.jsonl"
    assert [each["planned"]["peak_memory_bytes"] for each in calibration.history()] == [110, 80]


def run(planned: tuple[float, float], actual: tuple[float, float], **more: Any) -> dict[str, Any]:
    """An entry, from seconds of steps and in all."""
    both = (dict(zip(("seconds", "total_seconds"), pair, strict=True)) for pair in (planned, actual))
    return {**dict(zip(("run", "planned", "actual"), ("runs/a", *both), strict=True)), "device": "cpu", **more}


def test_what_was_not_planned_is_learned_from_the_latest_runs(own_cache: Path) -> None:
    """Beside the steps: 5, 3 + 1 that the plan was corrected by, and 7 seconds."""
    assert calibration.unplanned("cpu", "this") == (0.0, 0)
    for entry in (
        run((10, 20), (30, 45), cpu="this"),
        run((10, 20), (10, 23), cpu="this", unplanned=1.0),
        run((10, 20), (9, 26), cpu="this"),
        run((10, 20), (10, 99), cpu="another"),
    ):
        calibration.remember(entry)
    assert calibration.unplanned("cpu", "this") == (5.0, 3)
    assert calibration.unplanned("cuda", "this") == (0.0, 0)
    for _ in range(5):
        calibration.remember(run((10, 20), (10, 22), cpu="this"))
    assert calibration.unplanned("cpu", "this") == (2.0, 5)


def test_the_summary() -> None:
    found = calibration.summary([entry(110, 100), entry(80, 100), entry(None, 100), entry(103, 100)])
    assert found["peak_memory_bytes"]["runs"] == 3
    assert found["peak_memory_bytes"]["median"] == pytest.approx(0.1)
    assert found["peak_memory_bytes"]["largest"] == pytest.approx(0.2)
    assert found["total_seconds"] == {"runs": 0, "median": None, "largest": None}


def test_on_the_screen(own_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    calibration.show()
    assert capsys.readouterr().out == "No run was planned and finished yet: luthier train RECIPE\n"
    calibration.remember(entry(1.1e9, 1e9))
    calibration.show()
    out = capsys.readouterr().out
    assert "1.1 GB, 1.0 GB: +10 %" in out
    assert "memory: off by 10 % in the middle, 10 % at most (1 runs)" in out
