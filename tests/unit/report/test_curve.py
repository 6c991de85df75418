from __future__ import annotations

from typing import Any

import pytest

from luthier.report.curve import MOST_POINTS, Lines, Mark, Plot, Spot, draw, ticks
from luthier.report.languages import LANGUAGES


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


def plot_of(*events: dict[str, Any]) -> Plot:
    plot = draw({"a": events})
    assert plot is not None
    return plot


def lines_of(*events: dict[str, Any]) -> Lines:
    return plot_of(*events).runs[0]


def test_positions_in_percent() -> None:
    plot = plot_of(evaluation(0, 4.0), step(1, 3.0), step(2, 2.0), evaluation(4, 2.0))
    (lines,) = plot.runs
    assert lines.raw == {"step": "25.0,50.0 50.0,100.0"}
    assert lines.heldout == {"step": "0.0,0.0 100.0,100.0"}
    assert lines.heldout_spots == [
        Spot({"step": 0}, 0, "step 0 · held-out 4.00"),
        Spot({"step": 100}, 100, "step 4 · held-out 2.00"),
    ]
    assert lines.spots[0] == Spot({"step": 25}, 50, "step 1 · loss 3.00")
    assert plot.y_ticks == [
        Mark(0, 100, "2.0"),
        Mark(0, 75, "2.5"),
        Mark(0, 50, "3.0"),
        Mark(0, 25, "3.5"),
        Mark(0, 0, "4.0"),
    ]
    (axis,) = plot.axes
    assert (axis.name, axis.unit) == ("step", "unit_step")
    assert [(tick.x, tick.text) for tick in axis.ticks] == [(0, "0"), (25, "1"), (50, "2"), (75, "3"), (100, "4")]


def measured(number: int, loss: float, tokens: int, seconds: float) -> dict[str, Any]:
    return {**step(number, loss), "tokens": tokens, "seconds": seconds}


def test_tokens_and_time_add_up_and_an_evaluation_stands_where_they_have_come_to() -> None:
    events = [
        evaluation(0, 4.0),
        measured(1, 3.0, 10_000, 60),
        evaluation(1, 3.0),
        measured(2, 2.0, 30_000, 180),
        evaluation(2, 2.0),
    ]
    plot = plot_of(*events)
    assert plot.runs[0].heldout == {
        "step": "0.0,0.0 50.0,50.0 100.0,100.0",
        "tokens": "0.0,0.0 25.0,50.0 100.0,100.0",
        "seconds": "0.0,0.0 25.0,50.0 100.0,100.0",
    }
    assert plot.runs[0].spots[1].text == "step 2 · 40,000 tokens · 4m00s · loss 2.00"
    assert [axis.unit for axis in plot.axes] == ["unit_step", "unit_tokens", "unit_min"]
    assert [(tick.x, tick.text) for tick in plot.axes[1].ticks] == [
        (0, "0"),
        (25, "10k"),
        (50, "20k"),
        (75, "30k"),
        (100, "40k"),
    ]
    assert [(tick.x, tick.text) for tick in plot.axes[2].ticks] == [
        (0, "0"),
        (25, "1"),
        (50, "2"),
        (75, "3"),
        (100, "4"),
    ]
    chinese = draw({"a": events}, LANGUAGES["zh"])
    assert chinese is not None
    assert chinese.runs[0].spots[1].text == "第 2 步 · 40,000 token · 4m00s · 损失 2.00"


@pytest.mark.parametrize(("seconds", "unit"), [(100, "unit_s"), (119, "unit_s"), (120, "unit_min"), (7200, "unit_h")])
def test_time_is_told_in_the_unit_that_suits_it(seconds: float, unit: str) -> None:
    assert plot_of(measured(1, 3.0, 2_000_000, seconds)).axes[2].unit == unit


def test_tokens_beyond_a_million_are_told_in_millions() -> None:
    texts = [tick.text for tick in plot_of(measured(1, 3.0, 2_000_000, 9)).axes[1].ticks]
    assert texts == ["0", "500k", "1M", "1.5M", "2M"]


def test_several_runs_share_the_axes() -> None:
    plot = draw({"short": [step(1, 4.0), step(2, 3.0)], "long": [step(4, 2.0)]})
    assert plot is not None
    assert [(lines.name, lines.raw["step"]) for lines in plot.runs] == [
        ("short", "25.0,0.0 50.0,50.0"),
        ("long", "100.0,100.0"),
    ]


def test_an_axis_that_one_run_has_no_figures_for_is_left_out() -> None:
    plot = draw({"old": [step(1, 4.0)], "new": [measured(1, 3.0, 10, 1)]})
    assert plot is not None
    assert [axis.name for axis in plot.axes] == ["step"]


def test_smooth_is_the_mean_of_a_twentieth_to_either_side() -> None:
    smooth = lines_of(*(step(number, 1.0 if number % 2 else 3.0) for number in range(1, 21))).smooth["step"]
    assert smooth.split()[0] == "5.0,50.0"  # of 1 and 3
    assert smooth.split()[2] == "15.0,33.33"  # of 3, 1 and 3


def test_long_runs_are_averaged() -> None:
    spots = lines_of(*(step(number, float(number % 2)) for number in range(1, 10 * MOST_POINTS + 1))).spots
    assert len(spots) == MOST_POINTS
    assert spots[0].text == "step 10 · loss 0.50"
    assert spots[-1].text == f"step {10 * MOST_POINTS:,} · loss 0.50"


def test_losses_that_are_not_finite_are_left_out() -> None:
    lines = lines_of(step(1, 2.0), step(2, None), step(3, 1.0), evaluation(3, None))
    assert [spot.text for spot in lines.spots] == ["step 1 · loss 2.00", "step 3 · loss 1.00"]
    assert lines.heldout == {"step": ""}


def test_nothing_to_draw() -> None:
    assert draw({"a": [{"event": "start", "step": 0, "resumed": False}, step(1, None)]}) is None


def test_one_evaluation_before_the_first_step() -> None:
    assert lines_of(evaluation(0, 3.91)).heldout_spots[0].x == {"step": 0, "tokens": 0, "seconds": 0}
