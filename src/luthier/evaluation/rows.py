"""Held-out rows one by one: which of them training helped, and how likely the quoted answers became."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from luthier.data.batches import micro_batches
from luthier.data.conversation import Conversation
from luthier.data.render import IGNORE, Example
from luthier.engine.engines import Engine
from luthier.engine.instance import evaluating
from luthier.evaluation.answers import quoted

ROWS = 100  # measured, spread over the held-out ones: both passes together cost less than two evaluations
PROMPT_SHOWN = 200  # characters

T = TypeVar("T")
BothLosses = tuple[float | None, float | None]
"""Of the base and the tuned model."""


def measure_rows(
    model: Any,
    engine: Engine,
    conversations: Sequence[Conversation],
    rows: Sequence[Sequence[Example]],
    *,
    budget: int,
) -> list[dict[str, Any]]:
    """`heldout.measured` of run.json: each row's loss a labelled token, in nats, under the base and the tuned model.

    Args:
        model: a PeftModel, which holds both, set up for `engine`.
        rows: [i] are the sequences of `conversations` [i].
        budget: tokens computed at once.
    """
    pairs = spread(list(zip(conversations, rows, strict=True)))
    chosen = [(row, examples) for row, examples in pairs if sum(e.num_labels for e in examples)]
    measured = base_and_tuned(model, engine, [examples for _, examples in chosen], budget=budget)
    return [
        {
            "where": str(row.source),
            "prompt": row.prompt[-1].content[:PROMPT_SHOWN],
            "labels": sum(example.num_labels for example in examples),
            "before": base,
            "after": tuned,
        }
        for (row, examples), (base, tuned) in zip(chosen, measured, strict=True)
    ]


def spread(rows: Sequence[T]) -> Sequence[T]:
    """At most ROWS of them, spread over all."""
    return rows[:: max(1, -(-len(rows) // ROWS))]


def measure_references(
    model: Any,
    engine: Engine,
    conversations: Sequence[Conversation],
    rows: Sequence[Sequence[Example]],
    *,
    budget: int,
) -> list[BothLosses]:
    """The loss of the reference answer of each held-out row that is asked (`answers.quoted`)."""
    references = [answer_alone(conversations[index], rows[index]) for index in quoted(conversations)]
    return base_and_tuned(model, engine, references, budget=budget)


def base_and_tuned(model: Any, engine: Engine, rows: Sequence[Sequence[Example]], *, budget: int) -> list[BothLosses]:
    """Loss a labelled token of each row, in nats, of the base and the tuned model. None for a row without labels."""
    tuned = _losses(model, engine, rows, budget)
    with model.disable_adapter():
        base = _losses(model, engine, rows, budget)
    return list(zip(base, tuned, strict=True))


def answer_alone(conversation: Conversation, examples: Sequence[Example]) -> list[Example]:
    """The row's last sequence with labels on its last answer only; empty where that answer is not trained.

    labels -100 5 END -100 -100 8 END -> -100 -100 -100 -100 -100 8 END
    """
    if not examples or conversation.messages[-1].role != "assistant" or not conversation.messages[-1].train:
        return []
    labels = examples[-1].labels
    start = len(labels)
    while start and labels[start - 1] != IGNORE:
        start -= 1
    return [replace(examples[-1], labels=[IGNORE] * start + labels[start:])]


def _losses(model: Any, engine: Engine, rows: Sequence[Sequence[Example]], budget: int) -> list[float | None]:
    found: dict[int, float] = {}  # by the sequence itself: micro-batches have an order of their own
    with evaluating(model), torch.no_grad():
        for batch in micro_batches([example for row in rows for example in row], engine, budget=budget):
            found.update(zip(map(id, batch), engine.losses(model, batch).tolist(), strict=True))
    labels = [sum(example.num_labels for example in row) for row in rows]
    return [sum(found[id(e)] for e in row) / count if count else None for row, count in zip(rows, labels, strict=True)]
