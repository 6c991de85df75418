"""Attention on a CPU, block by block: no padding, no mask where none is needed, a shared segment's keys read once.

Each segment is two products of queries with keys: its own tokens with themselves (causal), and all the tokens that lie
behind it with its own (whole). A token's partial results are merged by their log-sum-exp, and each block's backward,
given the merged result, yields that block's part of the gradient: the same arithmetic as ring attention
(Liu et al. 2023, arXiv:2310.01889).

The kernels are PyTorch's flash attention for CPUs, in float32 whatever the model's dtype: its backward in bfloat16 took
four to six times as long, and so it is also the more exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.engine.layout import Layout, Segment

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Block:
    """Queries and keys of the flat row that are multiplied at once.

    causal: they are the same tokens, each of which sees itself and those before.
    merge: these queries have a result already, from another block.
    mask: [queries, keys] bool, where a window cuts through.
    """

    queries: slice
    keys: slice
    causal: bool = False
    merge: bool = False
    mask: Tensor | None = None


def blocks_of(layout: Layout, window: int | None = None) -> list[Block]:
    """What to multiply, blocks that merge last. A window counts the token itself."""
    window = min(window or layout.longest, layout.longest)
    own = [block for segment in layout.segments for block in _own(segment, window)]
    return own + [block for segment in layout.segments for block in _behind(segment, layout, window)]


def _own(segment: Segment, window: int) -> Iterator[Block]:
    """A segment's tokens among themselves, one window's length of queries at a time."""
    for start in range(segment.start, segment.end, window):
        queries = slice(start, min(start + window, segment.end))
        keys = slice(max(segment.start, start - window + 1), queries.stop)
        if keys == queries:
            yield Block(queries, keys, causal=True)
        else:
            yield Block(queries, keys, mask=_visible(queries, keys, start - keys.start, window))


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
            mask = _visible(queries, keys, s.depth - segment.depth - skipped, window)
            yield Block(queries, keys, merge=True, mask=mask)


def _visible(queries: slice, keys: slice, distance: int, window: int) -> Tensor:
    """[queries, keys] bool: which key a query sees. `distance`: from the first key to the first query, in positions."""
    behind = distance + torch.arange(queries.stop - queries.start)[:, None]
    behind = behind - torch.arange(keys.stop - keys.start)[None]
    return (behind >= 0) & (behind < window)


def block_attention(query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scaling: float | None) -> Tensor:
    """[1, N, H, D] from query [1, H, N, D] and key, value [1, G, N, D], H a multiple of G, in value's dtype."""
    out: Tensor = _BlockAttention.apply(query, key, value, blocks, scaling)  # type: ignore[no-untyped-call]
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scaling: float | None
    ) -> Tensor:
        q, k, v = _grouped(query, key, value)
        groups, each, length, width = q.shape
        rows = q.new_empty(1, length, groups * each, width)
        out, lse = _by_group(rows.transpose(1, 2), groups), q.new_empty(groups, each, length)
        for block in blocks:
            at = block.queries
            part, part_lse = _forward(
                q[:, :, at], k[:, :, block.keys], v[:, :, block.keys], 0.0, block.causal, **_options(block, q, scaling)
            )
            if block.merge:
                merged = torch.logaddexp(lse[:, :, at], part_lse)
                out[:, :, at].lerp_(part, (part_lse - merged).exp_()[..., None])
                lse[:, :, at] = merged
            else:
                out[:, :, at], lse[:, :, at] = part, part_lse
        result = rows.to(value.dtype)
        ctx.blocks, ctx.scaling = blocks, scaling
        ctx.save_for_backward(query, key, value, result, lse)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result, lse = ctx.saved_tensors
        q, k, v = _grouped(query, key, value)
        groups = k.shape[0]
        out, grad = (_by_group(x.to(q.dtype).transpose(1, 2), groups) for x in (result, gradients[0]))
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (q.new_zeros(groups, *k.shape[2:]) for _ in range(2))
        for block in ctx.blocks:
            at, keys = block.queries, block.keys
            part_q, part_k, part_v = _backward(
                grad[:, :, at],
                q[:, :, at],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, at],
                lse[:, :, at],
                0.0,
                block.causal,
                **_options(block, q, ctx.scaling),
            )
            if block.merge:
                grad_q[:, :, at] += part_q
            else:
                grad_q[:, :, at] = part_q
            grad_k[:, keys] += part_k.sum(1)
            grad_v[:, keys] += part_v.sum(1)
        return (
            grad_q.flatten(0, 1)[None].to(query.dtype),
            grad_k[None].to(key.dtype),
            grad_v[None].to(value.dtype),
            None,
            None,
        )


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[G, H / G, N, D] each, in float32 at least; a group's keys and values are shown to each of its query heads."""
    groups, each = key.shape[1], query.shape[1] // key.shape[1]
    dtype = torch.promote_types(value.dtype, torch.float32)
    k, v = (x[0, :, None].to(dtype).expand(-1, each, -1, -1) for x in (key, value))
    return _by_group(query.to(dtype), groups), k, v


def _by_group(heads: Tensor, groups: int) -> Tensor:
    """[1, H, N, D] → [G, H / G, N, D], a view."""
    return heads[0].view(groups, -1, *heads.shape[2:])


def _options(block: Block, like: Tensor, scaling: float | None) -> dict[str, Any]:
    mask = None if block.mask is None else like.new_zeros(block.mask.shape).masked_fill_(~block.mask, float("-inf"))
    return {"attn_mask": mask, "scale": scaling}
