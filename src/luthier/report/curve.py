"""Loss curves as geometry: positions in percent of the plot, so that text can lie over lines at any width.

The page switches between the axes by style alone, so every line is drawn once for each. Its script enlarges a part: for
that the plot has every point too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.report import words
from luthier.report.languages import ENGLISH, Language

MOST_POINTS = 300  # more than a screen can show; beyond it, neighbours are averaged
MOST_READ = 10_000  # points that can be read one by one: about 0.9 MB of the page
AXES = ("step", "tokens", "seconds")
UNITS = (("s", 1), ("min", 60), ("h", 3600))

Point = tuple[dict[str, float], float]
"""Where on each axis, and the loss there."""


@dataclass(frozen=True)
class Mark:
    """A place on the plot with its text: a tick, or a point that says its figures when pointed at."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Spot:
    """A point of a curve: where it is on each axis."""

    x: dict[str, float]
    y: float
    text: str


@dataclass(frozen=True)
class Axis:
    """`unit` is the key of its words, `unit_min`, and `scale` how much of the axis one is: 60."""

    name: str
    unit: str
    scale: int
    ticks: list[Mark]


@dataclass(frozen=True)
class Lines:
    """A run's SVG polylines by axis, in a box of 100 by 100, the highest loss at the top."""

    name: str
    raw: dict[str, str]
    smooth: dict[str, str]
    heldout: dict[str, str]
    spots: list[Spot]
    heldout_spots: list[Spot]


@dataclass(frozen=True)
class Plot:
    """`points`, for the script: the axes, and of each run every loss with its figures."""

    axes: list[Axis]
    y_ticks: list[Mark]
    runs: list[Lines]
    points: dict[str, Any]


def draw(timelines: Mapping[str, Sequence[dict[str, Any]]], language: Language = ENGLISH) -> Plot | None:
    """The curves of runs by name, or None before their first loss. Axes that a run has no figures for are left out."""
    series = {name: _series(timeline) for name, timeline in timelines.items()}
    every = [point for train, heldout in series.values() for point in (*train, *heldout)]
    if not every:
        return None
    names = [axis for axis in AXES if all(axis in places for places, _ in every)]
    right = {axis: max(places[axis] for places, _ in every) or 1 for axis in names}
    shown = {name: (_averaged(train, MOST_POINTS), heldout) for name, (train, heldout) in series.items()}
    losses = [loss for train, heldout in shown.values() for _, loss in (*train, *heldout)]
    y_values = ticks(min(losses), max(losses))
    low, high = y_values[0], y_values[-1]

    def y(loss: float) -> float:
        return round(100 * (high - loss) / (high - low), 2)

    def x(places: dict[str, float]) -> dict[str, float]:
        return {axis: round(100 * places[axis] / right[axis], 2) for axis in names}

    def line(points: Sequence[Point]) -> dict[str, str]:
        return {axis: " ".join(f"{x(places)[axis]},{y(loss)}" for places, loss in points) for axis in names}

    def spots(points: Sequence[Point], kind: str) -> list[Spot]:
        return [Spot(x(places), y(loss), _figures(places, loss, kind, language)) for places, loss in points]

    def read(points: Sequence[Point], kind: str) -> list[dict[str, Any]]:
        return [
            {
                "x": [places[axis] for axis in names],
                "y": loss,
                "smooth": float(f"{smooth:.6g}"),
                "text": _figures(places, loss, kind, language, exactly),
            }
            for (places, loss), (_, smooth) in zip(points, _smoothed(points), strict=True)
        ]

    axes = [_axis(axis, right[axis]) for axis in names]
    return Plot(
        axes=axes,
        y_ticks=[Mark(0, y(loss), f"{loss:.{_decimals(y_values)}f}") for loss in y_values],
        runs=[
            Lines(
                name,
                line(train),
                line(_smoothed(train)),
                line(heldout),
                spots(train, "point_loss"),
                spots(heldout, "point_heldout"),
            )
            for name, (train, heldout) in shown.items()
        ],
        points={
            "axes": [{"name": axis.name, "scale": axis.scale, "unit": language.say(axis.unit)} for axis in axes],
            "runs": [
                {
                    "name": name,
                    "train": read(_averaged(train, MOST_READ), "point_loss"),
                    "heldout": read(heldout, "point_heldout"),
                }
                for name, (train, heldout) in series.items()
            ],
        },
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, a step of 1, 2 or 5 times a power of ten apart, that enclose [low, high].

    >>> ticks(1.3, 3.9)
    [1.0, 2.0, 3.0, 4.0]
    """
    span = (high - low) or abs(high) or 1
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _axis(name: str, right: float) -> Axis:
    unit, scale = name, 1
    if name == "seconds":
        unit, scale = next(((unit, scale) for unit, scale in reversed(UNITS) if right >= 2 * scale), UNITS[0])
    label: Callable[[float], str] = _short if name == "tokens" else lambda value: f"{value:,.10g}"
    values = [value for value in ticks(0, right / scale) if name == "seconds" or value == int(value)]
    marks = [Mark(round(100 * value * scale / right, 2), 100, label(value)) for value in values]
    return Axis(name, f"unit_{unit}", scale, [mark for mark in marks if mark.x <= 100])


def _short(count: float) -> str:
    """950, 20k, 1.5M"""
    if count >= 1e6:
        return f"{count / 1e6:.10g}M"
    return f"{count / 1e3:.10g}k" if count >= 1e4 else f"{count:,.0f}"


def exactly(loss: float) -> str:
    """As the events have it, but for what float32 cannot tell: 2.31074"""
    return f"{loss:.6g}"


def _figures(
    places: dict[str, float],
    loss: float,
    kind: str,
    language: Language,
    write: Callable[[float], str] = words.loss,
) -> str:
    """`step 20 · 9,000 tokens · 29s · loss 2.31`"""
    said = [language.say("at_step", step=f"{places['step']:,.0f}")]
    if "tokens" in places:
        said.append(language.say("at_tokens", tokens=f"{places['tokens']:,.0f}"))
    if "seconds" in places:
        said.append(words.duration(places["seconds"]))
    return " · ".join([*said, language.say(kind, loss=write(loss))])


def _decimals(values: Sequence[float]) -> int:
    return max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))


def _series(timeline: Sequence[dict[str, Any]]) -> tuple[list[Point], list[Point]]:
    """The finite training and held-out losses; an evaluation stands where the steps before it have come to."""
    train: list[Point] = []
    heldout: list[Point] = []
    steps = [event for event in timeline if event["event"] == "step"]
    known = [axis for axis in ("tokens", "seconds") if all(isinstance(event.get(axis), int | float) for event in steps)]
    sums = {axis: list(itertools.accumulate((step[axis] for step in steps), initial=0)) for axis in known}
    done = 0
    for event in timeline:
        done += event["event"] == "step"
        places = {"step": event.get("step", 0), **{axis: total[done] for axis, total in sums.items()}}
        if event["event"] == "step" and event["loss"] is not None:
            train.append((places, event["loss"]))
        if event["event"] == "evaluation" and event["heldout_loss"] is not None:
            heldout.append((places, event["heldout_loss"]))
    return train, heldout


def _averaged(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points, each the mean of as many neighbours."""
    width = math.ceil(len(points) / most) or 1
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Each loss as the mean of its neighbours, a twentieth of the run to either side."""
    reach = len(points) // 20
    sums = [0.0, *itertools.accumulate(loss for _, loss in points)]
    means = []
    for index, (places, _) in enumerate(points):
        first, end = max(0, index - reach), min(len(points), index + reach + 1)
        means.append((places, (sums[end] - sums[first]) / (end - first)))
    return means
