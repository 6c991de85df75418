"""What attention over a flat row multiplies: a tree of segments as blocks of queries and keys, without padding.

Each segment is two products of queries with keys: its own tokens with themselves (causal), and all the tokens that lie
behind it with its own (whole), as what begins with a segment lies in one piece behind it. A mask is drawn only where a
window cuts through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from luthier.engine.layout import Layout, Segment

MASKED_QUERIES = 256
"""Each of them is multiplied with the keys of all: a window of 2,048 took 1.5 times as long with 2,048 at once."""


@dataclass(frozen=True)
class Block:
    """Queries and keys of the flat row that are multiplied at once.

    causal: they are the same tokens, each of which sees itself and those before.
    merge: these queries have a result already, from another block.
    window: what a query sees of the keys, if it cuts through; distance: from the first key to the first query then.
    """

    queries: slice
    keys: slice
    causal: bool = False
    merge: bool = False
    window: int | None = None
    distance: int = 0

    @cached_property
    def mask(self) -> Tensor | None:
        """[queries, keys] bool: which key a query sees, where a window cuts through."""
        if self.window is None:
            return None
        ahead = self.distance + torch.arange(self.queries.stop - self.queries.start)[:, None]
        ahead = ahead - torch.arange(self.keys.stop - self.keys.start)[None]
        return (ahead >= 0) & (ahead < self.window)


def blocks_of(layout: Layout, window: int | None = None) -> list[Block]:
    """What to multiply, blocks that merge last. A window counts the token itself."""
    window = min(window or layout.longest, layout.longest)
    own = [block for segment in layout.segments for block in _own(segment, window)]
    return own + behind(layout, window)


def behind(layout: Layout, window: int | None = None, *, after: int = 0) -> list[Block]:
    """Of the blocks, those of segments with what lies behind them; of segments that reach beyond so many tokens."""
    window = min(window or layout.longest, layout.longest)
    return [block for s in layout.segments if s.last >= after for block in _behind(s, layout, window)]


def _own(segment: Segment, window: int) -> Iterator[Block]:
    """A segment's tokens among themselves, some queries at a time where a window cuts through."""
    length = segment.end - segment.start
    step = length if length <= window else min(window, MASKED_QUERIES)
    for start in range(segment.start, segment.end, step):
        queries = slice(start, min(start + step, segment.end))
        keys = slice(max(segment.start, start - window + 1), queries.stop)
        if keys == queries:
            yield Block(queries, keys, causal=True)
        else:
            yield Block(queries, keys, window=window, distance=start - keys.start)


def _behind(segment: Segment, layout: Layout, window: int) -> Iterator[Block]:
    """The tokens behind a segment with its own: all at once, or segment by segment where the window cuts through."""
    behind = [s for s in layout.segments if segment.end <= s.start < segment.until]
    if behind and max(s.last for s in behind) - segment.depth < window:
        yield Block(slice(segment.end, segment.until), slice(segment.start, segment.end), merge=True)
        return
    for s in behind:
        queries = slice(s.start, min(s.end, s.start + segment.last + window - s.depth))
        skipped = max(0, s.depth - window + 1 - segment.depth)
        keys = slice(segment.start + skipped, segment.end)
        if queries.start < queries.stop:
            yield Block(queries, keys, merge=True, window=window, distance=s.depth - segment.depth - skipped)
