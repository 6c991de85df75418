"""Which queries and keys grouped products multiply at once: a flat row as groups of segments, cut into tiles.

Segments of like length are computed together, padded to the longest of them: a call costs as much as a small product.
Tiles have queries and keys: what lies between two products then stays in the cache, however long a row is, and what no
query sees is left out.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from luthier.engine.blocks import Block, behind
from luthier.engine.layout import Layout

TILE = 5 << 18
"""Scores computed at once, in all heads: 5 MB in float32."""

WIDTH, HEIGHT = 512, 256
"""Keys of a tile, and queries of one at the edge of what is seen, at most. With all keys of a row of 5,400 in a tile,
and so but 21 queries, attention took twice as long."""

CALL = 1 << 14
"""A call's price in scores of one head: padding up to that much is cheaper than one more group."""


class Hidden(NamedTuple):
    """Some scores of a tile, among them those of keys that are not seen.

    columns: where they stand. mask: what is added to them, 0 or -inf.
    last, first: the diagonals (key - query) between which a key is seen; all up to the last where there is no first.
    """

    columns: slice
    mask: Tensor
    last: int
    first: int | None


class Tile(NamedTuple):
    """Scores computed at once: those of some queries of a block and of keys that some of them see."""

    queries: slice
    keys: slice
    hidden: Hidden | None


Strip = list[Tile]
"""Tiles of the same queries, which see no other keys of the block."""


@dataclass(frozen=True)
class Group:
    """B segments of up to L tokens that attend to themselves.

    tokens: [B * L], where they lie; N where there is none.
    """

    tokens: Tensor
    length: int
    strips: list[Strip]


@dataclass(frozen=True)
class Plan:
    """What to multiply for a layout.

    place: [N], where a token of a group stands among all groups' tokens; behind the last for a token of none.
    blocks: what groups leave over.
    """

    groups: list[Group]
    place: Tensor
    blocks: list[tuple[Block, list[Strip]]]


def plan_of(layout: Layout, heads: int, window: int | None = None) -> Plan:
    """Segments, which see themselves, in groups of like length; and block by block what lies behind them."""
    own = sorted(((s.end - s.start, s.start) for s in layout.segments), reverse=True)
    groups: list[Group] = []
    place = torch.empty(layout.num_tokens, dtype=torch.long)
    filled = 0
    for first, stop in _groups([size for size, _ in own], heads):
        longest = own[first][0]
        tokens = torch.full((stop - first, longest), layout.num_tokens)
        for row, (size, start) in enumerate(own[first:stop]):
            tokens[row, :size] = torch.arange(start, start + size)
            place[start : start + size] = torch.arange(size) + filled + row * longest
        groups.append(Group(tokens.flatten(), longest, _strips(longest, longest, heads, 0, window)))
        filled += tokens.numel()
    return Plan(groups, place, [(block, _strips_of(block, heads)) for block in behind(layout, window)])


def _groups(sizes: list[int], heads: int) -> list[tuple[int, int]]:
    """Cuts falling sizes into groups [first, stop) whose squares, padded, and calls cost least together."""
    # cheapest[i]: the cost of sizes[i:], and where the first group of them ends
    cheapest = [(0, 0)] * len(sizes) + [(0, len(sizes))]
    for first in reversed(range(len(sizes))):
        square = sizes[first] ** 2
        most = max(1, TILE // (heads * square))
        cheapest[first] = min(
            (CALL + (stop - first) * square + cheapest[stop][0], stop)
            for stop in range(first + 1, min(first + most, len(sizes)) + 1)
        )
    cut, first = [], 0
    while first < len(sizes):
        cut.append((first, cheapest[first][1]))
        first = cheapest[first][1]
    return cut


def _size(at: slice) -> int:
    size: int = at.stop - at.start
    return size


def _strips_of(block: Block, heads: int) -> list[Strip]:
    keys = _size(block.keys)
    distance = keys if block.window is None else block.distance  # all are seen, or as many as the window holds
    return _strips(_size(block.queries), keys, heads, distance, block.window)


def _strips(queries: int, keys: int, heads: int, distance: int, window: int | None) -> list[Strip]:
    """Tiles of like width, without those in which no key is seen.

    distance: of the first query from the first key, in positions.
    """
    strips = []
    fitting = max(16, TILE // (heads * min(keys, WIDTH)))
    height = 1 << fitting.bit_length() - 1
    if distance < keys:
        height = min(height, HEIGHT)
    for start in range(0, queries, height):
        stop = min(start + height, queries)
        first = 0 if window is None else max(0, start + distance - window + 1)
        last = min(keys, stop + distance)
        borders = [first, *range((first // WIDTH + 1) * WIDTH, last, WIDTH), last]
        strips.append(
            [
                Tile(slice(start, stop), slice(a, b), _hidden(stop - start, b - a, start + distance - a, window))
                for a, b in itertools.pairwise(borders)
            ]
        )
    return strips


def _hidden(queries: int, keys: int, distance: int, window: int | None) -> Hidden | None:
    """The columns of a tile that not all of its queries see, side by side."""
    before, behind = window is not None and queries + distance > window, distance + 1 < keys
    if not before and not behind:
        return None
    first = 0 if before else max(0, distance + 1)
    last = keys if behind or window is None else min(keys, queries + distance - window)
    last_seen = distance - first
    first_seen = None if window is None else last_seen - window + 1
    return Hidden(slice(first, last), _mask(queries, last - first, last_seen, first_seen), last_seen, first_seen)


@functools.lru_cache(maxsize=32)
def _mask(queries: int, keys: int, last: int, first: int | None) -> Tensor:
    seen = between(torch.ones(queries, keys, dtype=torch.bool), last, first)
    return torch.zeros(queries, keys, dtype=torch.bfloat16).masked_fill_(~seen, float("-inf"))


def between(x: Tensor, last: int, first: int | None) -> Tensor:
    """x, zero outside of these diagonals."""
    x.tril_(last)
    return x if first is None else x.triu_(first)
