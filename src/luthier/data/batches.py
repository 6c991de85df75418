"""Which rows make an optimizer step, and how a step is cut into micro-batches."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

from luthier.data.render import Example

Cost = Callable[[Sequence[Example]], int]


def epoch_steps(num_examples: int, batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Indices of each optimizer step of an epoch: a fresh shuffle, the last step holding what is left.

    Depends on seed and epoch alone, so a resumed run draws the same steps.
    """
    order = list(range(num_examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]


def micro_batches(
    examples: Sequence[Example], cost: Cost, *, budget: int, parts: int | None = None
) -> list[list[Example]]:
    """Cuts the rows of a step into micro-batches of like length.

    Args:
        cost: tokens computed for rows that lie in one micro-batch.
        budget: a micro-batch is filled up to this cost; a single row may exceed it.
        parts: cut into exactly so many equal parts instead (`gradient_accumulation_steps`).
    """
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    if parts is not None:
        borders = [len(ordered) * part // parts for part in range(parts + 1)]
        cut = [ordered[a:b] for a, b in itertools.pairwise(borders)]
        return [part for part in cut if part]
    batches: list[list[Example]] = []
    for example in ordered:
        if batches and cost([*batches[-1], example]) <= budget:
            batches[-1].append(example)
        else:
            batches.append([example])
    return batches
