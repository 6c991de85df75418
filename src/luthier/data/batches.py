"""Which rows make an optimizer step, and how a step is cut into micro-batches."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Protocol

from luthier.data.render import Example


class Filling(Protocol):
    """A micro-batch while it is filled row by row."""

    @property
    def tokens(self) -> int:
        """How many tokens the linear layers compute for its rows."""
        ...

    def added(self, example: Example) -> int:
        """How many more there would be with this row."""
        ...

    def add(self, example: Example) -> None: ...


class Computes(Protocol):
    """What an engine says of the cost of rows."""

    def in_order(self, examples: Sequence[Example]) -> list[Example]: ...

    def filling(self) -> Filling: ...


def epoch_steps(num_examples: int, batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Indices of each optimizer step of an epoch: a fresh shuffle, the last step holding what is left.

    Depends on seed and epoch alone, so a resumed run draws the same steps.
    """
    order = list(range(num_examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]


def micro_batches(
    examples: Sequence[Example], engine: Computes, *, budget: int, parts: int | None = None
) -> list[list[Example]]:
    """Cuts the rows of a step into micro-batches of rows that cost least together.

    Args:
        engine: says which those are, and how many tokens it computes for them.
        budget: a micro-batch is filled up to so many tokens. A single row may exceed it; so may rows that share a
            prefix of more than half of it, up to twice the prefix, which would else be computed again for a few rows.
            1: each row alone.
        parts: cut into exactly so many equal parts instead (`gradient_accumulation_steps`).
    """
    ordered = engine.in_order(examples)
    if parts is not None:
        borders = [len(ordered) * part // parts for part in range(parts + 1)]
        cut = [ordered[a:b] for a, b in itertools.pairwise(borders)]
        return [part for part in cut if part]
    batches: list[list[Example]] = []
    filling = engine.filling()
    for example in ordered:
        added, alone = filling.added(example), engine.filling().added(example)
        if batches and budget > 1 and filling.tokens + added <= max(budget, 2 * (alone - added)):
            batches[-1].append(example)
        else:
            batches.append([example])
            filling = engine.filling()
        filling.add(example)
    return batches


def even_shares(examples: Sequence[Example], engine: Computes, count: int) -> list[list[Example]]:
    """Cuts the rows of a step into so many shares that cost about the same, or fewer where there are fewer rows.

    Rows that cost least together stay side by side, but for a few that go where less is to be done. What the rows of
    two shares begin with is computed in each. `count`: two or more.
    """
    ordered, filling = engine.in_order(examples), engine.filling()
    added, again = [], []  # by each row behind those before it, and what it computes again where a share begins with it
    for example in ordered:
        added.append(filling.added(example))
        again.append(engine.filling().added(example) - added[-1])
        filling.add(example)
    before = [0, *itertools.accumulate(added)]

    def borders(more: float) -> list[int]:
        """Where shares end, if each but the first computes so many tokens again."""
        each = (before[-1] + (count - 1) * more) / count
        ends = (share * (each - more) + more for share in range(1, count))
        return [min(range(len(before)), key=lambda place: abs(before[place] - end)) for end in ends]

    more = statistics.fmean(again[min(place, len(again) - 1)] for place in borders(0))
    places = sorted({0, *borders(more), len(ordered)})
    shares = [list(range(*border)) for border in itertools.pairwise(places)]

    def cost(share: list[int]) -> int:
        return again[share[0]] + sum(added[place] for place in share)

    for _ in ordered:
        least, most = min(shares, key=cost), max(shares, key=cost)
        excess = cost(most) - cost(least)
        moved = min(most[1:], key=lambda place: abs(added[place] - excess / 2), default=None)
        if moved is None or added[moved] >= excess:
            break
        most.remove(moved)
        least.append(moved)
    return [[ordered[place] for place in share] for share in shares]
