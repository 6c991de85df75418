"""Flash attention over a tree of segments: no mask, and no compiler.

A token attends to its own segment up to itself, and to the whole of each segment that its own begins with. That is one
call for all segments side by side, causal, and one for each level of the tree: of the segments on it that others go on
from, with all tokens behind them. With the log-sum-exp of its scores a call's result is merged with the others':

    lse = log sum_i exp(lse_i),   out = sum_i exp(lse_i - lse) out_i

Its backward pass needs of the forward no more than out and lse, and with those of the merged result it gives what its
own pairs add to the gradients (FlashAttention-2, arXiv 2307.08691; as flash decoding and cascade inference merge).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.engine.layout import Layout, Segment, to_device
from luthier.engine.scores import Scores


@dataclass(frozen=True)
class Parts:
    """Queries and keys of the flat row cut into as many parts: those of a part attend to those of the same one.

    queries, keys: where the parts begin, and the end of the last. A part may have none of either.
    """

    queries: list[int]
    keys: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longest part."""
        return max(b - a for ends in (self.queries, self.keys) for a, b in itertools.pairwise(ends))


def parts_of(segments: tuple[Segment, ...]) -> list[Parts]:
    """First all segments, each for itself; then those with others behind them, a level of the tree after the other."""
    ends = [0, *(segment.end for segment in segments)]
    levels: list[list[Segment]] = []
    holding: list[Segment] = []
    for segment in segments:
        while holding and holding[-1].until <= segment.start:
            holding.pop()
        if segment.end < segment.until:
            if len(holding) == len(levels):
                levels.append([])
            levels[len(holding)].append(segment)
            holding.append(segment)
    return [Parts(ends, ends), *(_level(segments, ends[-1]) for segments in levels)]


def _level(held: list[Segment], end: int) -> Parts:
    """What lies behind each of these segments attends to it."""
    queries, keys = [0], [0]

    def part(query: int, key: int) -> None:
        if (query, key) != (queries[-1], keys[-1]):
            queries.append(query)
            keys.append(key)

    for segment in held:
        part(segment.end, keys[-1])  # queries up to here see none,
        part(queries[-1], segment.start)  # and keys up to here are seen by none
        part(segment.until, segment.end)
    part(end, keys[-1])
    part(end, end)
    return Parts(queries, keys)


@dataclass(frozen=True)
class Call:
    """`Parts` on the device: [P + 1] int32 each."""

    queries: Tensor
    keys: Tensor
    longest: int
    causal: bool


CALLS = "calls of flash attention"
"""Under which a layout keeps them."""


def in_flashes(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scores: Scores) -> Tensor:
    """Attention with plain scores; with a window only where no segment is shared."""
    calls = layout.once(CALLS, lambda: _calls(layout))
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    behind = -1 if scores.window is None else scores.window - 1
    out: Tensor = _Flashes.apply(q, k, v, calls, scores.scaling, behind)  # type: ignore[no-untyped-call]
    return out[None]


def _calls(layout: Layout) -> list[Call]:
    def call(parts: Parts, *, causal: bool) -> Call:
        ends = torch.tensor([parts.queries, parts.keys], dtype=torch.int32)
        queries, keys = to_device(ends, layout.device)
        return Call(queries, keys, parts.longest, causal)

    own, *levels = parts_of(layout.segments)
    return [call(own, causal=True), *(call(parts, causal=False) for parts in levels)]


class _Flashes(torch.autograd.Function):
    """q [N, H, D], k and v [N, G, D] → [N, H, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, calls: list[Call], scaling: float, behind: int) -> Tensor:
        found = [_forward(q, k, v, call, scaling, behind) for call in calls]
        out, lse, *_ = found[0]
        if len(found) > 1:
            out, lse = _merged([(out, lse) for out, lse, *_ in found])
        ctx.calls, ctx.scaling, ctx.behind = calls, scaling, behind
        ctx.save_for_backward(q, k, v, out, lse, *found[0][2:])
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *random = ctx.saved_tensors
        gradient = gradient.contiguous()
        total: tuple[Tensor, ...] = ()
        for call in ctx.calls:
            found = _backward(gradient, q, k, v, out, lse, call, random, ctx.scaling, ctx.behind)
            total = tuple(a.add_(b) for a, b in zip(total, found, strict=True)) if total else found
        return *total, None, None, None


def _merged(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of out [N, H, D] and lse [H, N] of each call. A query without keys has infinite lse there."""
    each = torch.stack([lse for _, lse in found])
    each = torch.where(each == torch.inf, -torch.inf, each)
    lse = each.logsumexp(dim=0)
    shares = (each - lse).exp_().mT[..., None]  # [L, N, H, 1]
    out = found[0][0] * shares[0]
    for (more, _), share in zip(found[1:], shares[1:], strict=True):
        out.addcmul_(more, share)
    return out.to(found[0][0].dtype), lse


def _forward(
    q: Tensor, k: Tensor, v: Tensor, call: Call, scaling: float, behind: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Result, log-sum-exp, and what the kernel would draw dropout from."""
    out, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(
        *(q, k, v, call.queries, call.keys, call.longest, call.longest, 0.0, call.causal and behind < 0, False),
        scale=scaling,
        window_size_left=behind,
        window_size_right=0 if call.causal else -1,
    )
    return out, lse, seed, offset


def _backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
    random: list[Tensor],
    scaling: float,
    behind: int,
) -> tuple[Tensor, ...]:
    causal = call.causal and behind < 0
    found: tuple[Tensor, ...] = torch.ops.aten._flash_attention_backward(
        *(gradient, q, k, v, out, lse, call.queries, call.keys, call.longest, call.longest, 0.0, causal, *random),
        scale=scaling,
        window_size_left=behind,
        window_size_right=0 if call.causal else -1,
    )
    return found
