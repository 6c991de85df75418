"""FlexAttention over a flat row on a GPU: for soft-capped scores, sinks, and float32.

FlexAttention skips tiles of 128 x 128 scores that hold no visible pair. Which those are follows from the segments by a
few comparisons of [N / 128, N / 128]; the [N, N] mask never exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad

from luthier.engine.layout import Layout
from luthier.engine.scores import Scores

TILE = 128


def block_mask(layout: Layout, window: int | None = None) -> BlockMask:
    """Which tiles FlexAttention computes, and which pairs of a partly visible one count."""
    length = layout.num_tokens
    tiles = -(-length // TILE)
    until = pad(layout.until, (0, tiles * TILE - length))  # 0: what fills up the last tile is seen by none
    positions = pad(layout.positions, (0, tiles * TILE - length))

    def visible(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (k <= q) & (q < until[k])
        return seen if window is None else seen & (positions[q] - positions[k] < window)

    first = torch.arange(tiles, device=until.device) * TILE
    nearest, furthest = until.view(tiles, TILE).aminmax(dim=1)
    before = first[None] < first[:, None]
    some = (first[None] <= first[:, None]) & (first[:, None] < furthest[None])
    every = before & (first[:, None] + TILE <= nearest[None])
    if window is not None:
        lowest, highest = positions.view(tiles, TILE).aminmax(dim=1)
        some &= lowest[:, None] - highest[None] < window
        every &= highest[:, None] - lowest[None] < window
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every), *_listed(every), BLOCK_SIZE=TILE, mask_mod=visible, seq_lengths=(length, length)
    )


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """[1, 1, T] counts and [1, 1, T, T] numbers of the tiles of keys that each tile of queries needs, those first."""
    order = tiles.int().argsort(dim=1, descending=True, stable=True)
    return tiles.sum(1).int()[None, None], order.int()[None, None].contiguous()


@dataclass(frozen=True)
class Flex:
    """FlexAttention for any layout. `attend`: compiled on a GPU; as it is, it writes out the scores."""

    attend: Callable[..., Any] = flex_attention

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scores: Scores) -> Tensor:
        window, cap, sinks = scores.window, scores.cap, scores.sinks
        groups = query.shape[1] // key.shape[1]
        if groups & (groups - 1):  # the kernel takes groups of a power of two
            key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1

        def capped(score: Tensor, *_place: Tensor) -> Tensor:
            assert cap is not None
            return cap * torch.tanh(score / cap)

        out = self.attend(
            query.to(value.dtype),
            key.to(value.dtype),
            value,
            score_mod=None if cap is None else capped,
            block_mask=layout.once(("tiles", window), lambda: block_mask(layout, window)),
            scale=scores.scaling,
            enable_gqa=groups > 1,
            return_aux=None if sinks is None else AuxRequest(lse=True),
            # Of fewer than 128 tokens it would take its kernel for decoding, which torch 2.11 cannot build in float32.
            kernel_options={"BACKEND": "TRITON"},
        )
        if sinks is not None:
            out, aux = out
            out = out * torch.sigmoid(aux.lse - sinks.float().view(1, -1, 1))[..., None].to(out.dtype)
        result: Tensor = out.transpose(1, 2)
        return result
