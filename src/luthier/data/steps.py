"""Which rows make each optimizer step: so many rows, or so many tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data.batches import epoch_steps


@dataclass(frozen=True)
class Steps:
    """The optimizer steps of every epoch, drawn from seed and epoch alone: a resumed run draws the same.

    Args:
        lengths: tokens of each row.
        rows: rows of a step; an epoch's last step holds what is left.
        tokens: instead of `rows`, about how many tokens a step holds. An epoch is cut into as many steps as that takes,
            so that each holds nearly the same and every epoch has as many.
    """

    lengths: Sequence[int]
    rows: int
    tokens: int | None
    seed: int

    def __len__(self) -> int:
        """Steps of an epoch, the same in each."""
        if self.tokens is None:
            return math.ceil(len(self.lengths) / self.rows)
        return min(len(self.lengths), math.ceil(sum(self.lengths) / self.tokens))

    def epoch(self, number: int) -> list[list[int]]:
        """Indices of the rows of each step of epoch `number`, the first of which is 0."""
        if self.tokens is None:
            return epoch_steps(len(self.lengths), self.rows, seed=self.seed, epoch=number)
        (order,) = epoch_steps(len(self.lengths), len(self.lengths), seed=self.seed, epoch=number)
        return self._by_tokens(order)

    def rows_in(self, steps: int) -> int:
        """Rows that so many steps train."""
        epochs, rest = divmod(steps, len(self))
        return epochs * len(self.lengths) + sum(map(len, self.epoch(epochs)[:rest]))

    def _by_tokens(self, order: list[int]) -> list[list[int]]:
        """Cuts the epoch nearest to equal shares of its tokens, but leaves no step without a row."""
        count, share = len(self), sum(self.lengths) / len(self)
        steps: list[list[int]] = [[]]
        before = 0
        for place, row in enumerate(order):
            full = before + self.lengths[row] / 2 > share * len(steps)
            last_chance = len(order) - place == count - len(steps)
            if steps[-1] and len(steps) < count and (full or last_chance):
                steps.append([])
            steps[-1].append(row)
            before += self.lengths[row]
        return steps
