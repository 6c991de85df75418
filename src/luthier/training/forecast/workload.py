"""What a run will compute: its steps, how they are cut into micro-batches, and what is done between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from luthier.data.batches import micro_batches
from luthier.data.conversation import Source
from luthier.data.prepare import Prepared
from luthier.data.render import IGNORE, Example
from luthier.data.steps import Steps
from luthier.engine.engines import Engine
from luthier.evaluation import answers, ending
from luthier.evaluation.rows import spread
from luthier.recipe.schema import Recipe
from luthier.training import plan
from luthier.training.cut import Cut

SAMPLES = 3
T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """A micro-batch: tokens that the layers compute, and labels whose logits are needed."""

    tokens: int
    labels: int

    @classmethod
    def of(cls, batch: Sequence[Example], engine: Engine) -> Piece:
        return cls(engine.cost(batch), sum(example.num_labels for example in batch))


@dataclass(frozen=True)
class Workload:
    """A run as it will be cut.

    dearest: the micro-batches that take most memory. samples: some of an epoch, from small to large, to be timed.
    epoch: the pieces of each step of an epoch. heldout: those of an evaluation. measured: of the rows that
    are measured one by one. processes: compute a step together, each about as much of it.
    real: tokens of the rows of each step of an epoch. padded: of padded batches of all of them.
    """

    dearest: list[list[Example]]
    samples: list[list[Example]]
    epoch: list[list[Piece]]
    heldout: list[Piece]
    measured: list[Piece]
    steps: int
    evaluations: int
    saves: int
    questions: int
    prompt_tokens: int
    ending_tokens: int
    real: list[int]
    padded: int
    processes: int = 1

    @property
    def computed(self) -> int:
        """Tokens of an epoch."""
        return sum(piece.tokens for step in self.epoch for piece in step)

    @property
    def pieces(self) -> list[Piece]:
        """Of the whole run: its epochs as the first one."""
        return [piece for step in self._of_run(self.epoch) for piece in step]

    @property
    def trained(self) -> int:
        """Tokens of the rows of the whole run."""
        return sum(self._of_run(self.real))

    def _of_run(self, epoch: list[T]) -> list[T]:
        whole, rest = divmod(self.steps, len(epoch))
        return [*epoch * whole, *epoch[:rest]]


def workload(
    recipe: Recipe, data: Prepared, steps: Steps, engine: Engine, *, cut: Cut, eval_steps: int, save_steps: int
) -> Workload:
    """The rows at hand, cut into micro-batches so."""
    epoch = steps.epoch(0)
    rows = [[data.train[i] for i in step] for step in epoch]
    batches = [cut.batches(step, engine) for step in rows]
    heldout, measured = data.heldout_examples, [example for row in spread(data.heldout) for example in row]
    total = plan.total_steps(recipe.train, steps)
    asked = answers.questions(data.heldout_conversations, recipe.prompts, recipe.data.system)
    prompts = [next((i for i, label in enumerate(some[0].labels) if label != IGNORE), 0) for some in data.heldout]
    return Workload(
        dearest=cut.dearest(data.train, epoch, engine),
        samples=_spread([batch for step in batches for batch in step], engine),
        epoch=[[Piece.of(batch, engine) for batch in step] for step in batches],
        heldout=[Piece.of(batch, engine) for batch in micro_batches(heldout, engine, budget=cut.tokens)],
        measured=[Piece.of(batch, engine) for batch in micro_batches(measured, engine, budget=cut.tokens)],
        steps=total,
        evaluations=1 + math.ceil(total / eval_steps) if heldout else 0,
        saves=math.ceil(total / save_steps),
        questions=len(asked),
        prompt_tokens=len(asked) * max(prompts[: answers.HELDOUT_SHOWN], default=32),
        ending_tokens=sum(len(row.input_ids) for row in ending.chosen(heldout)),
        real=[sum(len(row.input_ids) for row in step) for step in rows],
        padded=sum(len(step) * max(len(row.input_ids) for row in step) for step in rows),
        processes=cut.processes,
    )


def _spread(batches: list[list[Example]], engine: Engine) -> list[list[Example]]:
    """A few of them, from small to large: in the middle of each third."""
    ordered = sorted(batches, key=engine.cost)
    places = {len(ordered) * (2 * n + 1) // (2 * SAMPLES) for n in range(SAMPLES)}
    return [ordered[place] for place in sorted(places)]


def imagined(length: int, tokens: int, vocabulary: int) -> list[Example]:
    """Rows for a micro-batch of about `tokens`, where no data says what they are like: half of each is an answer."""
    rows = max(1, tokens // length)
    return [_row(length, row % vocabulary, vocabulary) for row in range(rows)]


def _row(length: int, first: int, vocabulary: int) -> Example:
    ids = [(first + place) % vocabulary for place in range(length + 1)]
    return Example(ids, [IGNORE] * (length // 2) + ids[length // 2 :], Source("imagined", 1))
