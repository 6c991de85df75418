"""Attention on a CPU in bfloat16, as grouped products.

Flash attention for CPUs computes bfloat16 at float32's rate. Written out, each product runs at bfloat16's, and what
lies between is a few passes over scores that the cache holds:

    forward    top = max(q k^T)                  p = exp([q -top] [k 1]^T)           o = p v / sum(p)
    backward   p   = exp([q -lse] [k 1]^T)       dv = p^T do
               ds  = p * ([do -delta] [v 1]^T)   dq = ds k      dk = ds^T q          delta = sum(do o)

What is subtracted rides along as columns of the products, each as two numbers, a rounded one and what is left of it: so
the differences are rounded once, and not what they are differences of. Formulas: arXiv:2205.14135, appendix B.

All this goes tile by tile (`tiles`). A query's tiles are summed in float32, and need a common `top`, which may be some
way below the largest score.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.engine import compiled
from luthier.engine.block_attention import in_blocks
from luthier.engine.layout import Layout
from luthier.engine.scores import Scores
from luthier.engine.tiles import Group, Plan, Strip, Tile, between, plan_of

FAR = 1e30
"""Where a sum of exp(score - top) is larger, top is too far below the largest score: float32 ends at 3e38."""

Piece = Callable[[slice], Tensor]
"""Part x[:, at] of a tensor."""


def in_products(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scores: Scores) -> Tensor:
    """[1, N, H, D] from query [1, H, N, D] and key, value [1, G, N, D], H a multiple of G, in value's dtype.

    Scores that are more than scaled products go block by block.
    """
    if not scores.plain:
        return in_blocks(query, key, value, layout, scores)
    heads = query.shape[1], key.shape[1]
    plan = layout.once(("products", scores.window, *heads), lambda: plan_of(layout, *heads, scores.window))
    out: Tensor = _ProductAttention.apply(query, key, value, plan, scores.scaling)  # type: ignore[no-untyped-call]
    return out


class _ProductAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scaling: float) -> Tensor:
        q = _wide(query[0].transpose(0, 1), scale=scaling)
        k, v = (_wide(x[0].transpose(0, 1), columns=1) for x in (key, value))
        parts = [_attend(g.strips, *_picked(g, (q,), (k, v))) for g in plan.groups]
        out, lse = (_together(part, plan.queries, q.shape[1]) for part in zip(*parts, strict=True))
        for block, strips in plan.blocks:
            at, keys = block.queries, block.keys
            of = (_sliced(x, s) for x, s in ((q, at), (k, keys), (v, keys)))
            part, part_lse = (x.transpose(0, 1) for x in _attend(strips, *of))
            merged = torch.logaddexp(lse[at], part_lse)
            out[at] = out[at].lerp(part, (part_lse - merged).exp_().to(part.dtype))
            lse[at] = merged
        ctx.plan, ctx.scaling = plan, scaling
        ctx.save_for_backward(q, k, v, out, lse)
        return out[None]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        plan: Plan = ctx.plan
        of = (_with(q, lse), _with(_wide(grad[0]), _dots(grad[0], out)), k, v)
        parts = [_gradients(g.strips, *_picked(g, of[:2], of[2:])) for g in plan.groups]
        of_queries, *of_keys = zip(*parts, strict=True)
        grads = [_together(of_queries, plan.queries, q.shape[1])]
        grads += [_of_keys(each, plan, k.shape[1]) for each in of_keys]
        for block, strips in plan.blocks:
            sides = (block.queries, block.queries, block.keys, block.keys)
            part = _gradients(strips, *(_sliced(x, s) for x, s in zip(of, sides, strict=True)))
            for whole, at, x in zip(grads, (block.queries, block.keys, block.keys), part, strict=True):
                whole[at] += x.transpose(0, 1)
        grad_q, grad_k, grad_v = (x.transpose(0, 1)[None] for x in grads)
        return grad_q.mul_(ctx.scaling), grad_k, grad_v, None, None


def _attend(strips: Sequence[Strip], q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """[B * H, L, D], and the log-sum-exp of the scores [B * H, L, 1] in float32.

    Args:
        q: [B * H, L, D + 2]; k, v: [B * G, S, D + 2], whose columns are ones.
    """
    keys, values = _pieces(k), _pieces(_narrow(v))
    parts = []
    for strip in strips:
        at = q[:, strip[0].queries].contiguous()
        ends = strip[:1] + strip[1:][-1:]  # all keys' largest score is nearly always near that of the first or latest
        for judged in (ends, strip):
            top = functools.reduce(torch.maximum, (_top(at, keys(tile.keys), tile) for tile in judged))
            out, total = _weighed(strip, _with(at, top), keys, values)
            if len(judged) == len(strip) or float(total.max()) < FAR:
                break
            at[..., -2:] = 0
        parts.append(((out / total).to(v.dtype), top.add_(total.log_())))
    if len(parts) == 1:
        return parts[0]
    out, lse = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return out, lse


def _top(q: Tensor, k: Tensor, tile: Tile) -> Tensor:
    """The largest score of each query [B * H, L, 1]."""
    scores = _scores(q, k)
    if compiled.fits(scores):
        return compiled.tops(scores, tile)
    return _masked(scores, tile).float().amax(-1, keepdim=True)


def _weighed(strip: Strip, q: Tensor, keys: Piece, values: Piece) -> tuple[Tensor, Tensor]:
    """The sum of all values by their weights p, and the sum of these, in float32."""
    outs, totals = [], []
    for tile in strip:
        v = values(tile.keys)
        p, total = _weights(_scores(q, keys(tile.keys)), tile)
        outs.append(torch.bmm(_grouped(p, v), v).view(*q.shape[:2], -1))
        totals.append(total)
    return _sum(outs), _sum(totals)


def _weights(scores: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """exp(scores), in place, and their sums [B * H, L, 1]."""
    if compiled.fits(scores):
        return scores, compiled.weigh(scores, tile)
    p = _shown(scores.exp_(), tile)
    return p, p.sum(-1, keepdim=True, dtype=torch.float32)


def _gradients(strips: Sequence[Strip], q: Tensor, do: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, without their two columns."""
    tile = strips[0][0]
    if (tile.queries.stop, tile.keys.start, tile.keys.stop) == (q.shape[1], 0, k.shape[1]):
        return _of_tile(tile, q, do, k, v)
    keys, values = _pieces(k), _pieces(v)
    dk, dv = (torch.zeros_like(_narrow(x), dtype=torch.float32) for x in (k, v))
    dq = []
    for strip in strips:
        at, of = (x[:, strip[0].queries].contiguous() for x in (q, do))
        parts = []
        for tile in strip:
            part_q, part_k, part_v = _of_tile(tile, at, of, keys(tile.keys), values(tile.keys))
            parts.append(part_q)
            dk[:, tile.keys] += part_k
            dv[:, tile.keys] += part_v
        dq.append(_sum(parts).to(q.dtype))
    return torch.cat(dq, dim=1), dk.to(k.dtype), dv.to(v.dtype)


def _of_tile(tile: Tile, q: Tensor, do: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, ds = _scores(q, k), _scores(do, v)
    if compiled.fits(p):
        compiled.weigh_backward(p, ds, tile)
    else:
        ds.mul_(_shown(p.exp_(), tile))
    dv, ds = torch.bmm(_grouped(p, k).mT, _grouped(_narrow(do), k)), _grouped(ds, k)
    return torch.bmm(ds, _narrow(k)).view(*q.shape[:2], -1), torch.bmm(ds.mT, _grouped(_narrow(q), k)), dv


def _pieces(x: Tensor) -> Piece:
    """Parts x[:, at], each copied once: a product would copy what is not in one piece each time."""
    copied: dict[tuple[int, int], Tensor] = {}

    def piece(at: slice) -> Tensor:
        if (at.start, at.stop) not in copied:
            copied[at.start, at.stop] = x[:, at].contiguous()
        return copied[at.start, at.stop]

    return piece


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """In float32, where there is more than one."""
    return functools.reduce(lambda total, part: total.float().add_(part), parts)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q k^T [B * H, L, S]: the keys of a group with all its query heads at once."""
    return torch.bmm(_grouped(q, k), k.mT).view(*q.shape[:2], -1)


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """[B * H, L, …] → [B * G, H / G * L, …]."""
    return x.reshape(len(k), -1, x.shape[-1])


def _masked(scores: Tensor, tile: Tile) -> Tensor:
    if tile.hidden is not None:
        scores[..., tile.hidden.columns] += tile.hidden.mask
    return scores


def _shown(p: Tensor, tile: Tile) -> Tensor:
    """p, zero where hidden, whatever it was there."""
    if tile.hidden is not None:
        between(p[..., tile.hidden.columns], tile.hidden.last, tile.hidden.first)
    return p


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """sum(a b) over the last dimension, [..., 1] float32."""
    return compiled.dots(a, b) if compiled.fits(b) else (a.float() * b.float()).sum(-1, keepdim=True)


def _wide(x: Tensor, columns: float = 0, scale: float = 1) -> Tensor:
    """[N, H, D] → [N + 1, H, D + 2]: x times scale, with two columns, and zeros for a token that is none."""
    wide = x.new_empty(len(x) + 1, x.shape[1], x.shape[2] + 2)
    torch.mul(x, scale, out=wide[:-1, :, :-2])
    wide[:-1, :, -2:] = columns
    wide[-1] = 0
    return wide


def _narrow(wide: Tensor) -> Tensor:
    """Without the two columns, which as those of a product's result would cost a quarter of its time."""
    return wide[..., :-2].contiguous()


def _with(wide: Tensor, number: Tensor) -> Tensor:
    """Puts -number [..., 1] into the columns of wide, in two parts."""
    rounded = number.to(wide.dtype)
    at = wide[: len(number)]
    at[..., -2:-1] = -rounded
    at[..., -1:] = rounded - number
    return wide


def _picked(group: Group, of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]) -> list[Tensor]:
    """The rows of a group: [N + 1, H, D] → [B * H, L, D], or [B * G, P + L, D]."""
    length = group.tokens.shape[1]
    sides = (of_queries, group.queries, length), (of_keys, group.keys, len(group.before) + length)
    return [x.view(-1, x.shape[-1]).index_select(0, at).view(-1, n, x.shape[-1]) for of, at, n in sides for x in of]


def _sliced(x: Tensor, at: slice) -> Tensor:
    """[N, H, D] → [H, L, D]."""
    return x[at].transpose(0, 1).contiguous()


def _together(parts: Sequence[Tensor], places: Tensor, heads: int) -> Tensor:
    """[N, heads, D] from the rows of all groups."""
    return torch.cat([x.flatten(0, 1) for x in parts]).index_select(0, places).view(-1, heads, parts[0].shape[-1])


def _of_keys(parts: Sequence[Tensor], plan: Plan, heads: int) -> Tensor:
    """[N, heads, D]: the gradient of each token as a key of its own segment, and of those that begin with it."""
    whole = _together(parts, plan.keys, heads)
    for group, x in zip(plan.groups, parts, strict=True):
        if shared := len(group.before):
            each = x.view(len(group.tokens), heads, *x.shape[1:])[:, :, :shared]
            whole[group.before] += each.sum(0, dtype=torch.float32).transpose(0, 1).to(x.dtype)
    return whole
