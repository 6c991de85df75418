"""How a model's attention scores come from the products of queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """A layer's scores, before the softmax.

    Args:
        scaling: of the products.
        window: a token sees so many latest tokens, itself included; None: all.
        cap: scores become cap · tanh(score / cap) (Gemma 2).
        sinks: [H], a score of each head that takes its share of the softmax and gives no value (gpt-oss).
    """

    scaling: float
    window: int | None = None
    cap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether any kernel knows them."""
        return self.cap is None and self.sinks is None
