"""The loss on rows that were not trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from luthier.data.batches import micro_batches
from luthier.data.render import Example
from luthier.engine.engines import Engine
from luthier.engine.instance import evaluating


def mean_loss(model: Any, engine: Engine, examples: Sequence[Example], *, budget: int) -> float:
    """Cross-entropy a labelled token, in nats."""
    total = sum_of_losses(model, engine, micro_batches(examples, engine, budget=budget))
    return total / sum(example.num_labels for example in examples)


def sum_of_losses(
    model: Any,
    engine: Engine,
    batches: Iterable[Sequence[Example]],
    *,
    before_each: Callable[[Sequence[Example]], None] = lambda batch: None,
) -> float:
    """Of all labelled tokens of these micro-batches, in nats.

    `before_each` is called with each micro-batch before it is computed, and may raise to end it there.
    """
    total = 0.0
    with evaluating(model), torch.no_grad():
        for batch in batches:
            before_each(batch)
            total += float(engine.loss_sum(model, batch))
    return total
