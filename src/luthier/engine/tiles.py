"""Which queries and keys grouped products multiply at once: a flat row as groups of segments, cut into tiles.

Segments of like length are computed together, padded to the longest of them: a call costs as much as a small product.
Tiles have queries and keys: what lies between two products then stays in the cache, however long a row is, and what no
query sees is left out.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from luthier.engine.blocks import Block, behind
from luthier.engine.layout import Layout, Segment

TILE = 5 << 18
"""Scores computed at once, in all heads: 5 MB in float32."""

WIDTH, HEIGHT = 512, 256
"""Keys of a tile, and queries of one at the edge of what is seen, at most. With all keys of a row of 5,400 in a tile,
and so but 21 queries, attention took twice as long."""

DIRECT = 128
"""So many first tokens of a sequence are keys of the segments behind them directly, copied for each. What lies further
behind is multiplied with all that follows at once, for one more result of each query to be merged."""

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
    """Scores computed at once: those of some queries of a block and of keys that some of them see.

    seen: (behind, before): query l of the tile sees its keys from l + before on, up to l + behind, without it.
    """

    queries: slice
    keys: slice
    hidden: Hidden | None
    seen: tuple[int, int]


Strip = list[Tile]
"""Tiles of the same queries, which see no other keys of the block."""


@dataclass(frozen=True)
class Group:
    """B segments of up to L tokens that attend to themselves, and to P tokens that all of them begin with.

    tokens: [B, L], where they lie; N where there is none. before: [P].
    queries [B * H * L], keys [B * G * (P + L)]: the same for each head, as rows of [(N + 1) * heads, D].
    """

    tokens: Tensor
    before: Tensor
    queries: Tensor
    keys: Tensor
    strips: list[Strip]


@dataclass(frozen=True)
class Plan:
    """What to multiply for a layout.

    queries [N * H], keys [N * G]: where each token's own stand among those of all groups.
    blocks: what groups leave over.
    """

    groups: list[Group]
    queries: Tensor
    keys: Tensor
    blocks: list[tuple[Block, list[Strip]]]


def plan_of(layout: Layout, heads: int, key_heads: int, window: int | None = None) -> Plan:
    """Segments with themselves and their first tokens, in groups of like length; block by block what lies between."""
    groups = []
    for before, segments in _by_beginning(layout).items():
        first_keys = torch.tensor(before, dtype=torch.long)
        segments.sort(key=lambda segment: (segment.start - segment.end, segment.start))
        for first, stop in _groups([s.end - s.start for s in segments], len(before), heads):
            longest = segments[first].end - segments[first].start
            tokens = torch.full((stop - first, longest), layout.num_tokens)
            for row, s in enumerate(segments[first:stop]):
                tokens[row, : s.end - s.start] = torch.arange(s.start, s.end)
            keys = torch.cat((first_keys.expand(len(tokens), -1), tokens), dim=1)
            strips = _strips(longest, keys.shape[1], heads, len(before), window)
            groups.append(Group(tokens, first_keys, _rows(tokens, heads), _rows(keys, key_heads), strips))
    queries = _places(groups, layout.num_tokens, heads, [0] * len(groups))
    keys = _places(groups, layout.num_tokens, key_heads, [len(group.before) for group in groups])
    return Plan(groups, queries, keys, [(b, _strips_of(b, heads)) for b in behind(layout, window, after=DIRECT)])


def _by_beginning(layout: Layout) -> dict[tuple[int, ...], list[Segment]]:
    """Segments by those of the first DIRECT tokens of their sequences that belong to segments before them."""
    by_beginning: dict[tuple[int, ...], list[Segment]] = {}
    holding: list[Segment] = []
    for segment in layout.segments:
        holding = [other for other in holding if segment.start < other.until]
        first = (range(other.start, other.end) for other in holding if other.last < DIRECT)
        by_beginning.setdefault(tuple(itertools.chain(*first)), []).append(segment)
        holding.append(segment)
    return by_beginning


def _rows(tokens: Tensor, heads: int) -> Tensor:
    """[B, S] → [B * heads * S]: where the heads of these tokens stand in [N * heads, D]."""
    return (tokens[:, None] * heads + torch.arange(heads)[:, None]).flatten()


def _places(groups: Sequence[Group], num_tokens: int, heads: int, skipped: Sequence[int]) -> Tensor:
    """[N * heads]: where each token's own rows stand among the [B * heads * (skipped + L)] rows of all groups."""
    places = torch.empty((num_tokens + 1) * heads, dtype=torch.long)
    filled = 0
    for group, skip in zip(groups, skipped, strict=True):
        batch, length = group.tokens.shape
        rows = torch.arange(batch * heads * (skip + length)).view(batch, heads, -1)
        places[_rows(group.tokens, heads)] = (rows[:, :, skip:] + filled).flatten()
        filled += rows.numel()
    return places[: num_tokens * heads]


def _groups(sizes: list[int], before: int, heads: int) -> list[tuple[int, int]]:
    """Cuts falling sizes into groups [first, stop) whose scores, padded, and calls cost least together."""
    # cheapest[i]: the cost of sizes[i:], and where the first group of them ends
    cheapest = [(0, 0)] * len(sizes) + [(0, len(sizes))]
    for first in reversed(range(len(sizes))):
        scores = sizes[first] * (before + sizes[first])
        most = max(1, TILE // (heads * scores))
        cheapest[first] = min(
            (CALL + (stop - first) * scores + cheapest[stop][0], stop)
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
                _tile(slice(start, stop), slice(a, b), start + distance - a, window)
                for a, b in itertools.pairwise(borders)
            ]
        )
    return strips


def _tile(queries: slice, keys: slice, distance: int, window: int | None) -> Tile:
    """distance: of its first query from its first key."""
    hidden = _hidden(_size(queries), _size(keys), distance, window)
    before = -_size(queries) if window is None else distance + 1 - window
    return Tile(queries, keys, hidden, (distance + 1, before))


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
