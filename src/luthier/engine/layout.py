"""The flat batch: one row of real tokens, without padding, and how its sequences lie in it.

Three sequences that begin with the same two tokens `A B`, labels in capitals below:

    sequences    A B c d      A B e      A B f g h

    input_ids    [A B │ c d │ e │ f g h]        the shared prefix stands once
    position_ids [0 1 │ 2 3 │ 2 │ 2 3 4]        each sequence goes on where the prefix ends
    layout       prefix=2, lengths=(2, 1, 3)

A token attends to the prefix and to the earlier tokens of its own sequence. A label is predicted at the token before
it, so a prefix never reaches the token that predicts a sequence's first label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from luthier.data.render import IGNORE, Example


@dataclass(frozen=True)
class Layout:
    """How sequences lie in a flat row of N tokens: the shared prefix first, then each one's own tokens.

    The index tensors are made once a batch, on `device`: every layer reads them.
    """

    prefix: int
    lengths: tuple[int, ...]
    device: torch.device | str = "cpu"

    @property
    def num_tokens(self) -> int:
        return self.prefix + sum(self.lengths)

    @cached_property
    def own_index(self) -> Tensor:
        """[B, L] int64: where token j of sequence b lies in the flat row; short sequences repeat their last token."""
        starts = torch.tensor([self.prefix, *self.lengths[:-1]]).cumsum(0)
        steps = torch.arange(max(self.lengths))
        index = starts[:, None] + torch.minimum(steps[None], torch.tensor(self.lengths)[:, None] - 1)
        return index.to(self.device)

    @cached_property
    def own_places(self) -> Tensor:
        """[N - prefix] int64: where each own token of the flat row lies in `own_index` read row by row."""
        real = torch.arange(max(self.lengths))[None] < torch.tensor(self.lengths)[:, None]
        return real.flatten().nonzero()[:, 0].to(self.device)


@dataclass(frozen=True)
class FlatBatch:
    """A micro-batch. `input_ids`, `position_ids`: [1, N]; `predict_at`, `targets`: [M], the tokens whose logits are
    needed and what they should predict."""

    input_ids: Tensor
    position_ids: Tensor
    predict_at: Tensor
    targets: Tensor
    layout: Layout


def shared_prefix(examples: Sequence[Example]) -> int:
    """How many first tokens all examples share, leaving each at least one own token before its first label."""
    if len(examples) < 2:
        return 0
    first, last = min(e.input_ids for e in examples), max(e.input_ids for e in examples)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return max(0, min(same, *(e.prompt_length - 1 for e in examples)))


def flatten(examples: Sequence[Example], *, share: bool = True, device: torch.device | str = "cpu") -> FlatBatch:
    """Lays examples out as one flat row on `device`; `share=False` keeps every sequence whole."""
    prefix = shared_prefix(examples) if share else 0
    input_ids = list(examples[0].input_ids[:prefix])
    position_ids = list(range(prefix))
    predict_at: list[int] = []
    targets: list[int] = []
    for example in examples:
        start = len(input_ids) - prefix
        input_ids += example.input_ids[prefix:]
        position_ids += range(prefix, len(example.input_ids))
        # A first token has no predecessor; with a label on it (plain text) nothing can predict it.
        trained = [i for i, label in enumerate(example.labels) if label != IGNORE and i > 0]
        predict_at += [start + i - 1 for i in trained]
        targets += [example.labels[i] for i in trained]
    return FlatBatch(
        torch.tensor([input_ids], device=device),
        torch.tensor([position_ids], device=device),
        torch.tensor(predict_at, dtype=torch.long, device=device),
        torch.tensor(targets, dtype=torch.long, device=device),
        Layout(prefix, tuple(len(e.input_ids) - prefix for e in examples), device),
    )
