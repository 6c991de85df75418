"""The loss curve as geometry: positions in percent of the plot, so that text can lie over lines at any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.report import words

MOST_POINTS = 400  # more than a screen can show; beyond it, neighbours are averaged


@dataclass(frozen=True)
class Mark:
    """A place on the plot with its text: a tick, or a point that says its figures when pointed at."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Curve:
    """`train`, `smooth` and `heldout` are SVG polylines in a box of 100 by 100, the highest loss at the top."""

    train: str
    smooth: str
    heldout: str
    train_marks: list[Mark]
    heldout_marks: list[Mark]
    x_ticks: list[Mark]
    y_ticks: list[Mark]


def draw(timeline: Sequence[dict[str, Any]]) -> Curve | None:
    """The curve of a run's events, or None before its first loss."""
    train = _series(timeline, "step", "loss")
    heldout = _series(timeline, "evaluation", "heldout_loss")
    if not train and not heldout:
        return None
    shown = _averaged(train)
    losses = [loss for _, loss in shown + heldout]
    y_values = ticks(min(losses), max(losses))
    x_values = [step for step in ticks(0, max(step for step, _ in train + heldout)) if step == int(step)]
    right = max(max(step for step, _ in train + heldout), 1)
    low, high = y_values[0], y_values[-1]

    def mark(step: float, loss: float, text: str = "") -> Mark:
        return Mark(round(100 * step / right, 2), round(100 * (high - loss) / (high - low), 2), text)

    def line(points: list[tuple[float, float]]) -> str:
        return " ".join(f"{place.x},{place.y}" for place in (mark(*point) for point in points))

    return Curve(
        train=line(shown),
        smooth=line(_smoothed(shown)),
        heldout=line(heldout),
        train_marks=[mark(step, loss, f"step {step:.0f} · loss {words.loss(loss)}") for step, loss in shown],
        heldout_marks=[mark(step, loss, f"step {step:.0f} · held-out {words.loss(loss)}") for step, loss in heldout],
        x_ticks=[mark(step, low, f"{step:,.0f}") for step in x_values if step <= right],
        y_ticks=[mark(0, loss, f"{loss:.{_decimals(y_values)}f}") for loss in y_values],
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


def _decimals(values: Sequence[float]) -> int:
    return max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))


def _series(timeline: Sequence[dict[str, Any]], kind: str, key: str) -> list[tuple[float, float]]:
    return [(event["step"], event[key]) for event in timeline if event["event"] == kind and event[key] is not None]


def _averaged(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points, each the mean of as many neighbours."""
    width = math.ceil(len(points) / MOST_POINTS) or 1
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each loss as the mean of its neighbours, a twentieth of the run to either side."""
    reach = len(points) // 20
    means = []
    for index, (step, _) in enumerate(points):
        near = [loss for _, loss in points[max(0, index - reach) : index + reach + 1]]
        means.append((step, sum(near) / len(near)))
    return means
