"""The flat batch: one row of real tokens, without padding, and how its sequences lie in it.

Sequences that begin with the same tokens share them: a batch is a tree of segments, laid out depth first. Three
sequences, labels in capitals below:

    sequences    a b c D      a b e F      a g H J

    input_ids    [a │ b │ c │ e │ g H]
    position_ids [0 │ 1 │ 2 │ 2 │ 1 2]      each segment goes on where the one that holds it ends
    until         6   4   3   4   6 6       all that begins with a segment lies behind it, up to here

So a token q attends to a token k exactly if k <= q < until[k]. A segment is computed once for all the sequences that
run through it, and so is its gradient: the sum of theirs. A loss term belongs to a sequence: two that share a token
may each have a label behind it. The token behind the last label predicts nothing and is left out (D, F, J above).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from luthier.data.render import IGNORE, Example

T = TypeVar("T")

SHORTEST_SHARED = 4
"""Fewer shared tokens are computed again: a segment adds some 0.1 ms of attention to a layer, where a token costs
SmolLM2 0.3 ms in float32 on two AVX2 cores, and a tenth of that where bfloat16 is fast."""


def to_device(made: Tensor, device: torch.device | str) -> Tensor:
    """Copies a tensor made on the host. From pinned memory, as a GPU's copy would else wait for all that runs there."""
    if torch.device(device).type != "cuda":
        return made.to(device)
    return made.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of the flat row; all that begins with them lies in [end, until).

    depth: the position of its first token, that is how many tokens its sequences hold before it.
    """

    start: int
    end: int
    until: int
    depth: int

    @property
    def last(self) -> int:
        """The position of its last token."""
        return self.depth + self.end - self.start - 1


@dataclass(frozen=True)
class Layout:
    """The segments of a flat row of N tokens, depth first.

    The index tensors are made once a batch, on `device`: every layer reads them.
    """

    segments: tuple[Segment, ...]
    device: torch.device | str = "cpu"
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        return self.segments[-1].end

    @property
    def shares(self) -> bool:
        """Whether a segment has others behind it. Without, a segment is a whole sequence."""
        return any(segment.end < segment.until for segment in self.segments)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return 1 + max(segment.last for segment in self.segments)

    @cached_property
    def until(self) -> Tensor:
        """[N] int64: where the subtree of each token's segment ends."""
        return self._each([segment.until for segment in self.segments])

    @cached_property
    def positions(self) -> Tensor:
        """[N] int64: each token's place in its sequences."""
        offsets = self._each([segment.depth - segment.start for segment in self.segments])
        return torch.arange(self.num_tokens, device=self.device) + offsets

    @cached_property
    def rows(self) -> Tensor:
        """[B, T] int64: where the tokens of each sequence lie, filled up on the right with its last one.

        One row for each segment with nothing behind it: it and all that it begins with.
        """
        if torch.device(self.device).type == "meta":  # where no value is known, and so not which are not zero
            return Layout(self.segments).rows.to(self.device)
        leaves = [segment for segment in self.segments if segment.end == segment.until]
        rows = [(self.until[: leaf.end] >= leaf.end).nonzero()[:, 0] for leaf in leaves]
        return torch.stack([torch.cat([row, row[-1:].expand(self.longest - len(row))]) for row in rows])

    @cached_property
    def places(self) -> Tensor:
        """[N] int64: where each token stands in `rows` read row by row, in the first row that holds it."""
        places = torch.empty(self.num_tokens, dtype=torch.long, device=self.device)
        order = torch.arange(self.rows.numel(), device=self.device)
        return places.scatter_reduce(0, self.rows.flatten(), order, "amin", include_self=False)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` gives, made once for this layout: all layers with one kind of attention need the same."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def mask(self, window: int | None = None) -> Tensor:
        """[N, N] bool: which token (row) attends to which (column). A window counts the token itself."""
        place = torch.arange(self.num_tokens, device=self.device)
        mask = (place[None] <= place[:, None]) & (place[:, None] < self.until[None])
        if window is not None:
            mask &= self.positions[:, None] - self.positions[None] < window
        return mask

    def _each(self, values: list[int]) -> Tensor:
        """[N]: one value a segment, repeated for each of its tokens."""
        lengths = [segment.end - segment.start for segment in self.segments]
        return to_device(torch.tensor(values).repeat_interleave(torch.tensor(lengths)), self.device)


@dataclass(frozen=True)
class FlatBatch:
    """A micro-batch. `input_ids`, `position_ids`: [1, N]; `predict_at`, `targets`, `example`: [M], the tokens whose
    logits are needed, what they should predict, and for which of the examples. A shared token stands in `predict_at`
    once for each sequence's label."""

    input_ids: Tensor
    position_ids: Tensor
    predict_at: Tensor
    targets: Tensor
    example: Tensor
    layout: Layout


class Tree:
    """Lays sequences out one by one; each shares what it can with the one before it.

    Args:
        share: False keeps every sequence whole.
    """

    def __init__(self, *, share: bool = True) -> None:
        self.share = share
        self.input_ids: list[int] = []
        self.position_ids: list[int] = []
        self.path: list[int] = []  # where each token of the latest sequence lies
        self._latest: list[int] = []  # its tokens
        self._borders: set[int] = set()  # how many of them lie before each segment's end
        self._starts: set[int] = set()  # where all segments begin in the flat row

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    def added(self, example: Example) -> int:
        """How many tokens the flat row would grow by."""
        row = needed_tokens(example)
        return len(row) - self._shared(row)

    def add(self, example: Example) -> None:
        """Lays an example out; `path` then says where each token that its loss needs lies."""
        row = needed_tokens(example)
        shared, start = self._shared(row), self.tokens
        self._borders = {border for border in self._borders if border <= shared}
        if self._leaves(row, shared):
            self._borders.add(shared)
            # What followed the last shared token until now becomes a segment beside this one.
            self._starts |= {start, self.path[shared - 1] + 1} if shared else {start}
        self.input_ids += row[shared:]
        self.position_ids += range(shared, len(row))
        self.path = [*self.path[:shared], *range(start, self.tokens)]
        self._latest = row

    def _shared(self, row: list[int]) -> int:
        """How many first tokens a row shares: up to where it leaves the latest one, or to a border before that.

        A border is set only where it makes a segment long enough.
        """
        same = common_prefix(self._latest, row) if self.share else 0
        border = max((border for border in self._borders if border <= same), default=0)
        return same if same - border >= SHORTEST_SHARED or not self._leaves(row, same) else border

    def _leaves(self, row: list[int], shared: int) -> bool:
        """Whether a row has tokens of its own that cannot simply go on where the flat row ends."""
        return shared < len(row) and self.path[max(shared - 1, 0) : shared] != [self.tokens - 1]

    def fill(self, multiple: int) -> None:
        """Repeats the last token until there is a multiple: nothing attends to those, and no loss asks for them."""
        missing = -self.tokens % multiple
        self.input_ids += self.input_ids[-1:] * missing
        self.position_ids += self.position_ids[-1:] * missing

    def segments(self) -> tuple[Segment, ...]:
        """In the order of the flat row. A segment's subtree ends where the next one of its depth or less begins."""
        starts = sorted(self._starts)
        until = dict.fromkeys(starts, self.tokens)
        holding: list[int] = []
        for start in starts:
            while holding and self.position_ids[holding[-1]] >= self.position_ids[start]:
                until[holding.pop()] = start
            holding.append(start)
        ends = [*starts[1:], self.tokens]
        return tuple(Segment(a, b, until[a], self.position_ids[a]) for a, b in zip(starts, ends, strict=True))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are the same, by bisection over slices: comparing those is C."""
    return bisect.bisect_left(range(min(len(a), len(b))), True, key=lambda i: a[: i + 1] != b[: i + 1])


def needed_tokens(example: Example) -> list[int]:
    """The tokens that take part in the loss: up to the one that predicts the last label, and one at least."""
    last = next((i for i in range(len(example.labels) - 1, 0, -1) if example.labels[i] != IGNORE), 1)
    return example.input_ids[:last]


def order(examples: Sequence[Example]) -> list[int]:
    """Places, those that begin alike side by side: at every level of the tree, those that share are neighbours."""
    return sorted(range(len(examples)), key=lambda place: examples[place].input_ids)


def flatten(
    examples: Sequence[Example], *, share: bool = True, multiple: int = 1, device: torch.device | str = "cpu"
) -> FlatBatch:
    """Lays examples out as one flat row on `device`; `share=False` keeps every sequence whole.

    The row is filled up to a multiple of so many tokens.

    `predict_at` and `targets` follow the flat row's order of sequences, not that of the examples.
    """
    tree = Tree(share=share)
    predict_at: list[int] = []
    targets: list[int] = []
    whose: list[int] = []
    for place in order(examples):
        example = examples[place]
        tree.add(example)
        # A first token has no predecessor; with a label on it (plain text) nothing can predict it.
        trained = [i for i, label in enumerate(example.labels) if label != IGNORE and i > 0]
        predict_at += [tree.path[i - 1] for i in trained]
        targets += [example.labels[i] for i in trained]
        whose += [place] * len(trained)
    tree.fill(multiple)
    return FlatBatch(
        to_device(torch.tensor([tree.input_ids]), device),
        to_device(torch.tensor([tree.position_ids]), device),
        to_device(torch.tensor(predict_at, dtype=torch.long), device),
        to_device(torch.tensor(targets, dtype=torch.long), device),
        to_device(torch.tensor(whose, dtype=torch.long), device),
        Layout(tree.segments(), device),
    )
