"""Attention on a CPU in bfloat16, as grouped products.

Flash attention for CPUs computes bfloat16 at float32's rate. Written out, each product runs at bfloat16's, and what
lies between is a few passes over scores that the cache holds:

    forward    top = max(q k^T)                  p = exp([q -top] [k 1]^T)           o = p v / sum(p)
    backward   p   = exp([q -lse] [k 1]^T)       dv = p^T do
               ds  = p * ([do -delta] [v 1]^T)   dq = ds k      dk = ds^T q          delta = sum(do o)

What is subtracted rides along as columns of the products, each as two numbers, a rounded one and what is left of it: so
the differences are rounded once, and not what they are differences of. Formulas: arXiv:2205.14135, appendix B.

Segments of like length are computed together, padded to the longest of them: a call costs as much as a small product.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.engine.block_attention import in_blocks
from luthier.engine.blocks import Block, blocks_of
from luthier.engine.layout import Layout
from luthier.engine.scores import Scores

TILE = 1 << 20
"""Scores computed at once, in all heads: 4 MB in float32."""

CALL = 1 << 14
"""A call's price in scores of one head: padding up to that much is cheaper than one more group."""


class Tile(NamedTuple):
    """Some queries of a block and the keys that they see.

    mask: added to the scores of the last keys: 0 or -inf.
    triangular: whether the mask hides from each token those behind it.
    """

    queries: slice
    keys: slice
    mask: Tensor | None = None
    triangular: bool = False


@dataclass(frozen=True)
class Group:
    """B segments of up to L tokens that attend to themselves.

    tokens: [B * L], where they lie; N where there is none.
    """

    tokens: Tensor
    length: int
    tiles: list[Tile]


@dataclass(frozen=True)
class Plan:
    """What to multiply for a layout.

    place: [N], where a token of a group stands among all groups' tokens; behind the last for a token of none.
    blocks: what groups leave over.
    """

    groups: list[Group]
    place: Tensor
    blocks: list[tuple[Block, list[Tile]]]


def plan_of(blocks: Sequence[Block], num_tokens: int, heads: int) -> Plan:
    """Blocks in which segments see themselves become groups of like length."""
    own = sorted(((_size(b.queries), b.queries.start) for b in blocks if b.causal), reverse=True)
    groups: list[Group] = []
    place = torch.full((num_tokens,), -1)
    filled = 0
    for first, stop in _groups([size for size, _ in own], heads):
        longest = own[first][0]
        tokens = torch.full((stop - first, longest), num_tokens)
        for row, (size, start) in enumerate(own[first:stop]):
            tokens[row, :size] = torch.arange(start, start + size)
            place[start : start + size] = torch.arange(size) + filled + row * longest
        tiles = [
            Tile(at, slice(0, at.stop), _triangle(_size(at)), triangular=True)
            for at in _heights(longest, longest, heads)
        ]
        groups.append(Group(tokens.flatten(), longest, tiles))
        filled += tokens.numel()
    place[place < 0] = filled
    return Plan(groups, place, [(block, _tiles(block, heads)) for block in blocks if not block.causal])


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


def in_products(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scores: Scores) -> Tensor:
    """[1, N, H, D] from query [1, H, N, D] and key, value [1, G, N, D], H a multiple of G, in value's dtype.

    Scores that are more than scaled products go block by block.
    """
    if not scores.plain:
        return in_blocks(query, key, value, layout, scores)
    heads = query.shape[1]
    plan = layout.once(
        ("products", scores.window, heads),
        lambda: plan_of(blocks_of(layout, scores.window), layout.num_tokens, heads),
    )
    out: Tensor = _ProductAttention.apply(query, key, value, plan, scores.scaling)  # type: ignore[no-untyped-call]
    return out


class _ProductAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scaling: float) -> Tensor:
        q, k, v = _wide(query[0].transpose(0, 1)), _wide(key[0].transpose(0, 1), 1), _wide(value[0].transpose(0, 1), 1)
        q *= scaling
        parts = [_attend(g.tiles, *(_picked(x, g) for x in (q, k, v))) for g in plan.groups]
        out, lse = _together(parts, plan)
        for block, tiles in plan.blocks:
            at, keys = block.queries, block.keys
            of = (_sliced(x, s) for x, s in ((q, at), (k, keys), (v, keys)))
            part, part_lse = (_rows(x, 1) for x in _attend(tiles, *of))
            if block.merge:
                merged = torch.logaddexp(lse[at], part_lse)
                out[at] = out[at].lerp(part, (part_lse - merged).exp_().to(part.dtype))
                lse[at] = merged
            else:
                out[at], lse[at] = part, part_lse
        ctx.plan, ctx.scaling = plan, scaling
        ctx.save_for_backward(q, k, v, out, lse)
        return out[None]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        plan: Plan = ctx.plan
        of = (_with(q, lse), _with(_wide(grad[0]), (grad[0].float() * out.float()).sum(-1, keepdim=True)), k, v)
        parts = [_gradients(g.tiles, *(_picked(x, g) for x in of)) for g in plan.groups]
        grads = _together(parts, plan)
        for block, tiles in plan.blocks:
            sides = (block.queries, block.queries, block.keys, block.keys)
            part = _gradients(tiles, *(_sliced(x, s) for x, s in zip(of, sides, strict=True)))
            for whole, at, x in zip(grads, (block.queries, block.keys, block.keys), part, strict=True):
                whole[at] += _rows(x, 1)
        grad_q, grad_k, grad_v = (x[..., :-2].transpose(0, 1)[None] for x in grads)
        return grad_q.mul_(ctx.scaling), grad_k, grad_v, None, None


def _attend(tiles: Sequence[Tile], q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """[B * H, L, D], and the log-sum-exp of the scores [B * H, L, 1] in float32.

    Args:
        q: [B * H, L, D + 2]; k, v: [B * G, S, D + 2], whose columns are ones.
    """
    parts = []
    for tile in tiles:
        at, seen = q[:, tile.queries], k[:, tile.keys]
        top = _masked(_scores(at, seen), tile).float().amax(-1, keepdim=True)
        p = _shown(_scores(_with(at, top), seen).exp_(), tile)
        total = p.sum(-1, keepdim=True, dtype=torch.float32)
        part = torch.bmm(_grouped(p, k), v[:, tile.keys]).view(at.shape)[..., :-2] / total
        parts.append((part.to(v.dtype), top.add_(total.log_())))
    if len(parts) == 1:
        return parts[0]
    out, lse = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return out, lse


def _gradients(tiles: Sequence[Tile], q: Tensor, do: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, in the first D of D + 2 columns."""
    if len(tiles) == 1:
        return _of_tile(tiles[0], q, do, k, v)
    dk, dv = (x.new_zeros(x.shape, dtype=torch.float32) for x in (k, v))
    dq = []
    for tile in tiles:
        at, keys = tile.queries, tile.keys
        part_q, part_k, part_v = _of_tile(tile, q[:, at], do[:, at], k[:, keys], v[:, keys])
        dq.append(part_q)
        dk[:, keys] += part_k
        dv[:, keys] += part_v
    return torch.cat(dq, dim=1), dk.to(k.dtype), dv.to(v.dtype)


def _of_tile(tile: Tile, q: Tensor, do: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p = _shown(_scores(q, k).exp_(), tile)
    dv = torch.bmm(_grouped(p, k).mT, _grouped(do, k))
    ds = _grouped(p.mul_(_scores(do, v)), k)
    return torch.bmm(ds, k).view(q.shape), torch.bmm(ds.mT, _grouped(q, k)), dv


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q k^T [B * H, L, S]: the keys of a group with all its query heads at once."""
    return torch.bmm(_grouped(q, k), k.mT).view(*q.shape[:2], -1)


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """[B * H, L, …] → [B * G, H / G * L, …]."""
    return x.reshape(len(k), -1, x.shape[-1])


def _size(at: slice) -> int:
    size: int = at.stop - at.start
    return size


def _tiles(block: Block, heads: int) -> list[Tile]:
    keys = _size(block.keys)
    hidden = None if block.mask is None else _hidden(~block.mask)
    return [
        Tile(at, slice(0, keys), None if hidden is None else hidden[at])
        for at in _heights(_size(block.queries), keys, heads)
    ]


def _heights(queries: int, keys: int, heads: int) -> Iterator[slice]:
    height = max(16, TILE // (heads * keys))
    return (slice(start, min(start + height, queries)) for start in range(0, queries, height))


def _triangle(size: int) -> Tensor:
    return _large_triangle(1 << (size - 1).bit_length())[:size, :size]


@functools.lru_cache(maxsize=8)
def _large_triangle(size: int) -> Tensor:
    """[size, size]: what hides from each token those behind it."""
    return _hidden(torch.ones(size, size, dtype=torch.bool).triu_(1))


def _hidden(where: Tensor) -> Tensor:
    return torch.zeros(where.shape, dtype=torch.bfloat16).masked_fill_(where, float("-inf"))


def _masked(scores: Tensor, tile: Tile) -> Tensor:
    if tile.mask is not None:
        scores[..., -tile.mask.shape[1] :] += tile.mask
    return scores


def _shown(p: Tensor, tile: Tile) -> Tensor:
    """p, zero where masked, whatever it was there."""
    if tile.mask is not None:
        last = p[..., -tile.mask.shape[1] :]
        last.tril_() if tile.triangular else last.masked_fill_(tile.mask < 0, 0)
    return p


def _wide(x: Tensor, columns: float = 0) -> Tensor:
    """[N, G, D] → [N + 1, G, D + 2]: with two columns, and zeros for a token that is none."""
    wide = x.new_zeros(len(x) + 1, x.shape[1], x.shape[2] + 2)
    wide[:-1, :, :-2] = x
    if columns:
        wide[:-1, :, -2:] = columns
    return wide


def _with(wide: Tensor, number: Tensor) -> Tensor:
    """Puts -number [..., 1] into the columns of wide, in two parts."""
    rounded = number.to(wide.dtype)
    at = wide[: len(number)]
    at[..., -2:-1] = -rounded
    at[..., -1:] = rounded - number
    return wide


def _picked(x: Tensor, group: Group) -> Tensor:
    """The rows of a group: [N, H, D] → [B * H, L, D]."""
    rows = x.view(len(x), -1).index_select(0, group.tokens).view(-1, group.length, *x.shape[1:])
    return rows.transpose(1, 2).reshape(-1, group.length, x.shape[-1])


def _sliced(x: Tensor, at: slice) -> Tensor:
    """[N, H, D] → [H, L, D]."""
    return x[at].transpose(0, 1).contiguous()


def _rows(x: Tensor, batch: int) -> Tensor:
    """The way back: [B * H, L, D] → [B * L, H, D]."""
    return x.view(batch, -1, *x.shape[1:]).transpose(1, 2).flatten(0, 1)


def _together(parts: Sequence[tuple[Tensor, ...]], plan: Plan) -> list[Tensor]:
    """[N, H, D] from the rows of all groups, for each of what they give; zeros for tokens of none."""
    together = []
    for part in zip(*parts, strict=True):
        rows = [_rows(x, len(g.tokens) // g.length) for x, g in zip(part, plan.groups, strict=True)]
        rows.append(rows[0].new_zeros(1, *rows[0].shape[1:]))
        shape = (len(plan.place), *rows[0].shape[1:])
        together.append(torch.cat(rows).flatten(1).index_select(0, plan.place).view(shape))
    return together
