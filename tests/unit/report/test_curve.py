from __future__ import annotations

from typing import Any

import pytest

from luthier.report.curve import MOST_POINTS, Mark, draw, ticks


def step(number: int, loss: float | None) -> dict[str, Any]:
    return {"event": "step", "step": number, "loss": loss}


def evaluation(number: int, loss: float | None) -> dict[str, Any]:
    return {"event": "evaluation", "step": number, "heldout_loss": loss}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.3, 3.9, [1.0, 2.0, 3.0, 4.0]),
        (2.0, 4.0, [2.0, 2.5, 3.0, 3.5, 4.0]),
        (0, 120, [0, 50, 100, 150]),
        (0.011, 0.013, [0.011, 0.0115, 0.012, 0.0125, 0.013]),
        (2.5, 2.5, [2.5, 3.0]),
        (0, 0, [0.0, 0.2]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_positions_in_percent() -> None:
    curve = draw([evaluation(0, 4.0), step(1, 3.0), step(2, 2.0), evaluation(4, 2.0)])
    assert curve is not None
    assert curve.train == "25.0,50.0 50.0,100.0"
    assert curve.heldout == "0.0,0.0 100.0,100.0"
    assert curve.heldout_marks == [Mark(0, 0, "step 0 · held-out 4.00"), Mark(100, 100, "step 4 · held-out 2.00")]
    assert curve.train_marks[0] == Mark(25, 50, "step 1 · loss 3.00")
    assert [(tick.y, tick.text) for tick in curve.y_ticks] == [
        (100, "2.0"),
        (75, "2.5"),
        (50, "3.0"),
        (25, "3.5"),
        (0, "4.0"),
    ]
    assert [(tick.x, tick.text) for tick in curve.x_ticks] == [(0, "0"), (25, "1"), (50, "2"), (75, "3"), (100, "4")]


def test_smooth_is_the_mean_of_a_twentieth_to_either_side() -> None:
    curve = draw([step(number, 1.0 if number % 2 else 3.0) for number in range(1, 21)])
    assert curve is not None
    assert curve.smooth.split()[0] == "5.0,50.0"  # of 1 and 3
    assert curve.smooth.split()[2] == "15.0,33.33"  # of 3, 1 and 3


def test_long_runs_are_averaged() -> None:
    curve = draw([step(number, float(number % 2)) for number in range(1, 10 * MOST_POINTS + 1)])
    assert curve is not None
    assert len(curve.train_marks) == MOST_POINTS
    assert curve.train_marks[0].text == "step 10 · loss 0.50"
    assert curve.train_marks[-1].text == f"step {10 * MOST_POINTS} · loss 0.50"


def test_losses_that_are_not_finite_are_left_out() -> None:
    curve = draw([step(1, 2.0), step(2, None), step(3, 1.0), evaluation(3, None)])
    assert curve is not None
    assert [mark.text for mark in curve.train_marks] == ["step 1 · loss 2.00", "step 3 · loss 1.00"]
    assert curve.heldout == ""


def test_nothing_to_draw() -> None:
    assert draw([{"event": "start", "step": 0, "resumed": False}, step(1, None)]) is None


def test_one_evaluation_before_the_first_step() -> None:
    curve = draw([evaluation(0, 3.91)])
    assert curve is not None
    assert curve.heldout_marks[0].x == 0
