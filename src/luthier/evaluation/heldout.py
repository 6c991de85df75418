"""The loss on rows that were not trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from luthier.data.batches import micro_batches
from luthier.data.render import Example
from luthier.engine.engines import Engine


def mean_loss(model: Any, engine: Engine, examples: Sequence[Example], *, budget: int) -> float:
    """Cross-entropy a labelled token, in nats. The model is left in the mode it came in."""
    was_training = model.training
    model.eval()
    total = 0.0
    with torch.no_grad():
        for batch in micro_batches(examples, engine, budget=budget):
            total += float(engine.loss_sum(model, batch))
    model.train(was_training)
    return total / sum(example.num_labels for example in examples)
