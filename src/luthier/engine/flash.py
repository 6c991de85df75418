"""Flash attention over a tree of segments, in one call: no mask, and no compiler.

The kernel takes sequences of queries and keys side by side, of which a query sees those keys up to its own place,
counted from the end. So each segment's queries are given the keys of all that they begin with, and then their own.
Where nothing is shared these are the flat row's keys as they lie; else they are picked from it, and the gradients of a
key that several segments saw are added up in float32 (FlashAttention-2, arXiv 2307.08691).

A call on a shared prefix alone, merged with one on the rest by their log-sum-exp, picks nothing; but of 66 shared
tokens the kernel's backward makes a single block of keys, which waits for all queries: 5.4 ms a micro-batch on an
H100, where that of all rows without sharing takes 2.1.
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

ASKED = "sequences"
"""Under which a layout keeps them."""


@dataclass(frozen=True)
class Sequences:
    """Queries and the keys they see, side by side.

    queries, keys: [S + 1] int32, where each sequence's begin, and where the last ones end.
    places: [K] int64, where the keys lie in the flat row; None: all of them, in its order.
    longest: at least as long as the queries or keys of any.
    """

    queries: Tensor
    keys: Tensor
    places: Tensor | None
    longest: int


def sequences(layout: Layout) -> Sequences:
    """One for each segment, on the host."""
    segments = layout.segments
    ends = torch.tensor([0, *(segment.end for segment in segments)], dtype=torch.int32)
    if not layout.shares:
        return Sequences(ends, ends, None, layout.longest)
    paths: list[list[Segment]] = []
    holding: list[Segment] = []
    for segment in segments:
        while holding and holding[-1].until <= segment.start:
            holding.pop()
        holding.append(segment)
        paths.append(list(holding))
    keys = [0, *itertools.accumulate(segment.last + 1 for segment in segments)]
    places = torch.cat([torch.arange(part.start, part.end) for path in paths for part in path])
    return Sequences(ends, torch.tensor(keys, dtype=torch.int32), places, layout.longest)


def in_flashes(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scores: Scores) -> Tensor:
    """Attention with plain scores, within a window or not."""
    asked = asked_of(layout)
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    behind = -1 if scores.window is None else scores.window - 1
    out: Tensor = _Flash.apply(q, k, v, asked, scores.scaling, behind)  # type: ignore[no-untyped-call]
    return out[None]


def asked_of(layout: Layout) -> Sequences:
    """Of this layout, on its device."""

    def make() -> Sequences:
        made = sequences(layout)
        queries, keys = (to_device(ends, layout.device) for ends in (made.queries, made.keys))
        places = None if made.places is None else to_device(made.places, layout.device)
        return Sequences(queries, keys, places, made.longest)

    return layout.once(ASKED, make)


class _Flash(torch.autograd.Function):
    """q [N, H, D], k and v [N, G, D] → [N, H, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, asked: Sequences, scaling: float, behind: int) -> Tensor:
        picked = (k, v) if asked.places is None else (k[asked.places], v[asked.places])
        out, lse, *random = _forward(q, *picked, asked, scaling, behind)
        ctx.asked, ctx.scaling, ctx.behind = asked, scaling, behind
        ctx.save_for_backward(q, k, v, out, lse, *random)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *random = ctx.saved_tensors
        places = ctx.asked.places
        picked = (k, v) if places is None else (k[places], v[places])
        found = _backward(gradient.contiguous(), q, *picked, out, lse, ctx.asked, random, ctx.scaling, ctx.behind)
        dq, dk, dv = found
        if places is not None:
            dk, dv = (_put_back(x, places, len(k)) for x in (dk, dv))
        return dq, dk, dv, None, None, None


def _put_back(picked: Tensor, places: Tensor, tokens: int) -> Tensor:
    total = torch.zeros(tokens, *picked.shape[1:], dtype=torch.float32, device=picked.device)
    return total.index_add_(0, places, picked.float()).to(picked.dtype)


def _forward(q: Tensor, k: Tensor, v: Tensor, asked: Sequences, scaling: float, behind: int) -> tuple[Tensor, ...]:
    """Result, log-sum-exp, and two that dropout would be drawn from."""
    found: tuple[Tensor, ...] = torch.ops.aten._flash_attention_forward(
        *(q, k, v, asked.queries, asked.keys, asked.longest, asked.longest, 0.0, behind < 0, False),
        scale=scaling,
        window_size_left=behind,
        window_size_right=0,
    )
    return found[:4]


def _backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    asked: Sequences,
    random: list[Tensor],
    scaling: float,
    behind: int,
) -> tuple[Tensor, ...]:
    at = asked.queries, asked.keys, asked.longest, asked.longest
    found: tuple[Tensor, ...] = torch.ops.aten._flash_attention_backward(
        *(gradient, q, k, v, out, lse, *at, 0.0, behind < 0, *random),
        scale=scaling,
        window_size_left=behind,
        window_size_right=0,
    )
    return found
