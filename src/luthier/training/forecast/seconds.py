"""How long a run takes, from what it computes and how fast this machine computes it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.engine.graphs import captures
from luthier.evaluation import answers
from luthier.inference import generate
from luthier.training import sample
from luthier.training.forecast.rates import Rates, Timed
from luthier.training.forecast.workload import Piece, Workload

# A folder of small files, each hashed and synced: 59 MB took 0.16 s on an SSD.
PER_SAVE, SAVED_PER_SECOND = 0.1, 1e9  # seconds, bytes
READ_PER_SECOND = 1e9


@dataclass(frozen=True)
class Seconds:
    """Of a run, by part. `steps`: its optimizer steps; `before`: all that comes before the first one.

    unplanned: what this machine's last runs took beyond such plans, besides their steps.
    """

    before: float
    steps: float
    evaluation: float
    saves: float
    answers: float
    unplanned: float = 0.0

    @property
    def total(self) -> float:
        return self.before + self.steps + self.evaluation + self.saves + self.answers + self.unplanned

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "total": self.total}


def seconds(
    work: Workload,
    rates: Rates,
    *,
    layers: int,
    recomputed: int,
    loading: float,
    saved_bytes: int,
    dearest: list[Piece],
    unplanned: float = 0.0,
) -> Seconds:
    """Of a whole run.

    Args:
        loading: seconds until the weights are there.
        saved_bytes: of a checkpoint.
        dearest: the micro-batches that are rehearsed before the first step, if any are.
        unplanned: seconds that earlier runs took beyond their plans.
    """
    step = step_seconds(rates, layers=layers, recomputed=recomputed)
    held, evaluated = (heldout_seconds(timed, layers=layers) for timed in (rates.heldout, rates.evaluation))
    sampled = sample.MAX_NEW_TOKENS * token_seconds(rates, layers) if work.questions else 0.0
    ending = 2 * held(Piece(work.ending_tokens, 0)) if work.ending_tokens else 0.0
    computing = sum(map(step, work.pieces)) + len(work.pieces) * rates.new_shape
    computing += captures(piece.tokens for piece in work.pieces) * rates.capture
    return Seconds(
        before=loading + sum(map(step, dearest)) + len(dearest) * rates.new_shape,
        steps=computing / work.processes + work.steps * layers * rates.update,
        evaluation=work.evaluations * (sum(map(evaluated, work.heldout)) / work.processes + sampled)
        + 2 * sum(map(held, work.measured)),
        saves=work.saves * (PER_SAVE + saved_bytes / SAVED_PER_SECOND),
        answers=answer_seconds(work, rates, layers) + ending,
        unplanned=unplanned,
    )


def step_seconds(rates: Rates, *, layers: int, recomputed: int) -> Callable[[Piece], float]:
    """Of one micro-batch forward and backward."""

    def of(piece: Piece) -> float:
        forward, backward = (_at(rates.steps, name, piece.tokens, "tokens") for name in ("forward", "backward"))
        outside = _at(rates.steps, "outside", piece.labels, "labels")
        return layers * (forward + backward) + recomputed * forward + outside

    return of


def heldout_seconds(timed: Timed, *, layers: int) -> Callable[[Piece], float]:
    """Of one micro-batch forward."""
    found = [timed]

    def of(piece: Piece) -> float:
        return layers * _at(found, "forward", piece.tokens, "tokens") + _at(found, "outside", piece.labels, "labels")

    return of


def answer_seconds(work: Workload, rates: Rates, layers: int) -> float:
    """Base and tuned model answer every question together. Most often one of the answers is as long as it may be."""
    if not work.questions:
        return 0.0
    prompts = 2 * layers * _at([rates.heldout], "forward", work.prompt_tokens, "tokens")
    rounds = math.ceil(2 * work.questions / generate.AT_ONCE)
    return prompts + rounds * answers.MAX_NEW_TOKENS * token_seconds(rates, layers)


def token_seconds(rates: Rates, layers: int) -> float:
    """Of one more token of answers that are written together. One alone takes not much less."""
    return layers * rates.new_token + rates.outside_token


def _at(timed: Sequence[Timed], name: str, amount: int, axis: str) -> float:
    """Between two of what was timed on a straight line, and beyond in proportion."""
    points: list[tuple[int, float]] = sorted({getattr(each, axis): getattr(each, name) for each in timed}.items())
    place = bisect.bisect_left(points, (amount, 0.0))
    if place in (0, len(points)):
        size, value = points[min(place, len(points) - 1)]
        return value * amount / max(1, size)
    (left, low), (right, high) = points[place - 1 : place + 1]
    return low + (high - low) * (amount - left) / (right - left)
