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
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from luthier.data.render import IGNORE, Example

T = TypeVar("T")

SAVED = 16
"""A beginning that rows share is a segment of its own where that saves so many tokens, over all of them: one more adds
0.3 to 0.7 ms of attention to a layer of SmolLM2 in bfloat16 on two cores, where a token costs 0.04."""


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


class _Beginning(NamedTuple):
    """What rows one after another begin with.

    length: of how many tokens. times: how often those would be computed if each branch had its own.
    rows: the places of those that share it with the row before them.
    """

    length: int
    times: int = 0
    rows: tuple[int, ...] = ()


class Tree:
    """Rows and what each begins with in common with the one before it.

    Args:
        share: False keeps every row whole.
    """

    def __init__(self, *, share: bool = True) -> None:
        self.share = share
        self._rows: list[list[int]] = []
        self._shared: dict[int, int] = {}  # how many first tokens a row, by its place, does not compute again
        self._open = [_Beginning(0)]  # of the latest row, with which others may begin, too; from short to long
        self._computed = 0  # tokens behind those that no other can begin with

    @property
    def tokens(self) -> int:
        return self._computed + _close(self._open, len(self._rows[-1]), 0)[1] if self._rows else 0

    def added(self, example: Example) -> int:
        """How many tokens the flat row would grow by."""
        row = needed_tokens(example)
        latest, same = self._latest(row)
        if same == len(latest):
            return len(row) - same
        still_open, computed, _ = _close(self._open, len(latest), same)
        return self._computed + computed + _close(still_open, len(row), 0)[1] - self.tokens

    def add(self, example: Example) -> None:
        row, place = needed_tokens(example), len(self._rows)
        latest, same = self._latest(row)
        if same == len(latest):  # it goes on where the latest ends
            self._shared[place] = same
        else:
            self._open, computed, shared = _close(self._open, len(latest), same)
            self._computed += computed
            self._shared |= shared
            length, times, rows = self._open[-1]
            self._open[-1] = _Beginning(length, times, (*rows, place))
        self._rows.append(row)

    def _latest(self, row: list[int]) -> tuple[list[int], int]:
        """The latest row, and how many first tokens of it a new one has, too."""
        latest = self._rows[-1] if self._rows else []
        return latest, common_prefix(latest, row) if self.share else 0

    def lay_out(self, multiple: int = 1) -> tuple[list[int], list[int], list[list[int]], tuple[Segment, ...]]:
        """The flat row: `input_ids`, `position_ids`, where the tokens of each row lie, and the segments.

        It is filled up to a multiple of so many tokens: nothing attends to those, and no loss asks for them.
        """
        shared = self._shared | _close(self._open, len(self._rows[-1]), 0)[2]
        input_ids: list[int] = []
        position_ids: list[int] = []
        paths: list[list[int]] = []
        starts = {0}
        for place, row in enumerate(self._rows):
            held, start = paths[-1][: shared.get(place, 0)] if paths else [], len(input_ids)
            if len(held) < len(row) and held[-1:] != [start - 1]:
                # What followed the last shared token until now becomes a segment beside this one.
                starts |= {start, held[-1] + 1} if held else {start}
            input_ids += row[len(held) :]
            position_ids += range(len(held), len(row))
            paths.append([*held, *range(start, len(input_ids))])
        missing = -len(input_ids) % multiple
        input_ids += input_ids[-1:] * missing
        position_ids += position_ids[-1:] * missing
        return input_ids, position_ids, paths, _segments(sorted(starts), position_ids)


def _close(beginnings: list[_Beginning], length: int, same: int) -> tuple[list[_Beginning], int, dict[int, int]]:
    """Decides on what is longer than `same`, once no more rows begin with it.

    Args:
        beginnings: those of the latest row, from short to long.
        length: of that row.
        same: how many of its tokens the next row begins with.

    Returns:
        Those that are left, how many tokens were decided on are computed, and how many tokens rows share, by place.
    """
    left, latest, computed = list(beginnings), _Beginning(length, 1), 0
    shared: dict[int, int] = {}
    while True:
        holding = left.pop() if left[-1].length >= same else _Beginning(same)
        own = latest.length - holding.length
        times, rows = latest.times, latest.rows
        if (times - 1) * own >= SAVED:
            shared |= dict.fromkeys(rows, latest.length)
            times, rows = 1, ()
        computed += own * times
        latest = _Beginning(holding.length, holding.times + times, holding.rows + rows)
        if latest.length == same:
            return [*left, latest], computed, shared


def _segments(starts: list[int], position_ids: list[int]) -> tuple[Segment, ...]:
    """In the order of the flat row. A segment's subtree ends where the next one of its depth or less begins."""
    end = len(position_ids)
    until = dict.fromkeys(starts, end)
    holding: list[int] = []
    for start in starts:
        while holding and position_ids[holding[-1]] >= position_ids[start]:
            until[holding.pop()] = start
        holding.append(start)
    return tuple(Segment(a, b, until[a], position_ids[a]) for a, b in itertools.pairwise([*starts, end]))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are the same, by bisection over slices: comparing those is C."""
    return bisect.bisect_left(range(min(len(a), len(b))), True, key=lambda i: a[: i + 1] != b[: i + 1])


def needed_tokens(example: Example) -> list[int]:
    """The tokens that take part in the loss: up to the one that predicts the last label, and one at least."""
    last = next((i for i in range(len(example.labels) - 1, 0, -1) if example.labels[i] != IGNORE), 1)
    return example.input_ids[:last]


def order(examples: Sequence[Example], *, share: bool = True) -> list[int]:
    """Places, those that begin alike side by side: at every level of the tree, those that share are neighbours.

    Without sharing, those of like length are: they are multiplied together.
    """
    rows = [example.input_ids for example in examples]
    return sorted(range(len(rows)), key=rows.__getitem__ if share else lambda place: len(rows[place]))


def flatten(
    examples: Sequence[Example], *, share: bool = True, multiple: int = 1, device: torch.device | str = "cpu"
) -> FlatBatch:
    """Lays examples out as one flat row on `device`; `share=False` keeps every sequence whole.

    The row is filled up to a multiple of so many tokens.

    `predict_at` and `targets` follow the flat row's order of sequences, not that of the examples.
    """
    tree, ordered = Tree(share=share), order(examples, share=share)
    for place in ordered:
        tree.add(examples[place])
    input_ids, position_ids, paths, segments = tree.lay_out(multiple)
    predict_at: list[int] = []
    targets: list[int] = []
    whose: list[int] = []
    for place, path in zip(ordered, paths, strict=True):
        labels = examples[place].labels
        # A first token has no predecessor; with a label on it (plain text) nothing can predict it.
        trained = [i for i, label in enumerate(labels) if label != IGNORE and i > 0]
        predict_at += [path[i - 1] for i in trained]
        targets += [labels[i] for i in trained]
        whose += [place] * len(trained)
    return FlatBatch(
        to_device(torch.tensor([input_ids]), device),
        to_device(torch.tensor([position_ids]), device),
        to_device(torch.tensor(predict_at, dtype=torch.long), device),
        to_device(torch.tensor(targets, dtype=torch.long), device),
        to_device(torch.tensor(whose, dtype=torch.long), device),
        Layout(segments, device),
    )
