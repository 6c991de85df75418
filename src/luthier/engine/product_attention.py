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
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.engine.block_attention import in_blocks
from luthier.engine.blocks import Block, behind
from luthier.engine.layout import Layout
from luthier.engine.scores import Scores

TILE = 5 << 18
"""Scores computed at once, in all heads: 5 MB in float32."""

WIDTH, HEIGHT = 512, 256
"""Keys of a tile, and queries where some of the keys are hidden from some of them, at most."""

FAR = 1e30
"""A sum of exp(score - top) from which on a top among other keys was no top of these: float32 ends at 3e38."""

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

Piece = Callable[[slice], Tensor]
"""Part x[:, at] of a tensor."""


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


def in_products(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scores: Scores) -> Tensor:
    """[1, N, H, D] from query [1, H, N, D] and key, value [1, G, N, D], H a multiple of G, in value's dtype.

    Scores that are more than scaled products go block by block.
    """
    if not scores.plain:
        return in_blocks(query, key, value, layout, scores)
    heads = query.shape[1]
    plan = layout.once(
        ("products", scores.window, heads),
        lambda: plan_of(layout, heads, scores.window),
    )
    out: Tensor = _ProductAttention.apply(query, key, value, plan, scores.scaling)  # type: ignore[no-untyped-call]
    return out


class _ProductAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scaling: float) -> Tensor:
        q, k, v = _wide(query[0].transpose(0, 1)), _wide(key[0].transpose(0, 1), 1), _wide(value[0].transpose(0, 1), 1)
        q *= scaling
        parts = [_attend(g.strips, *(_picked(x, g) for x in (q, k, v))) for g in plan.groups]
        out, lse = _together(parts, plan)
        for block, strips in plan.blocks:
            at, keys = block.queries, block.keys
            of = (_sliced(x, s) for x, s in ((q, at), (k, keys), (v, keys)))
            part, part_lse = (_rows(x, 1) for x in _attend(strips, *of))
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
        parts = [_gradients(g.strips, *(_picked(x, g) for x in of)) for g in plan.groups]
        grads = _together(parts, plan)
        for block, strips in plan.blocks:
            sides = (block.queries, block.queries, block.keys, block.keys)
            part = _gradients(strips, *(_sliced(x, s) for x, s in zip(of, sides, strict=True)))
            for whole, at, x in zip(grads, (block.queries, block.keys, block.keys), part, strict=True):
                whole[at] += _rows(x, 1)
        grad_q, grad_k, grad_v = (x[..., :-2].transpose(0, 1)[None] for x in grads)
        return grad_q.mul_(ctx.scaling), grad_k, grad_v, None, None


def _attend(strips: Sequence[Strip], q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """[B * H, L, D], and the log-sum-exp of the scores [B * H, L, 1] in float32.

    Args:
        q: [B * H, L, D + 2]; k, v: [B * G, S, D + 2], whose columns are ones.
    """
    keys, values = _pieces(k), _pieces(v)
    parts = []
    for strip in strips:
        at = q[:, strip[0].queries].contiguous()
        for judged in (strip[:1] + strip[1:][-1:], strip):
            top = functools.reduce(torch.maximum, (_top(at, keys(tile.keys), tile) for tile in judged))
            out, total = _weighed(strip, _with(at, top), keys, values)
            if float(total.max()) < FAR:
                break
            at[..., -2:] = 0
        parts.append(((out[..., :-2] / total).to(v.dtype), top.add_(total.log_())))
    if len(parts) == 1:
        return parts[0]
    out, lse = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return out, lse


def _top(q: Tensor, k: Tensor, tile: Tile) -> Tensor:
    """The largest score of each query [B * H, L, 1]."""
    return _masked(_scores(q, k), tile).float().amax(-1, keepdim=True)


def _weighed(strip: Strip, q: Tensor, keys: Piece, values: Piece) -> tuple[Tensor, Tensor]:
    """The sum of all values by their weights p, and the sum of these, in float32."""
    outs, totals = [], []
    for tile in strip:
        v = values(tile.keys)
        p = _shown(_scores(q, keys(tile.keys)).exp_(), tile)
        outs.append(torch.bmm(_grouped(p, v), v).view(q.shape))
        totals.append(p.sum(-1, keepdim=True, dtype=torch.float32))
    return _sum(outs), _sum(totals)


def _gradients(strips: Sequence[Strip], q: Tensor, do: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, in the first D of D + 2 columns."""
    if len(strips) == len(strips[0]) == 1:
        return _of_tile(strips[0][0], q, do, k, v)
    keys, values = _pieces(k), _pieces(v)
    dk, dv = (x.new_zeros(x.shape, dtype=torch.float32) for x in (k, v))
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
    p = _shown(_scores(q, k).exp_(), tile)
    dv = torch.bmm(_grouped(p, k).mT, _grouped(do, k))
    ds = _grouped(p.mul_(_scores(do, v)), k)
    return torch.bmm(ds, k).view(q.shape), torch.bmm(ds.mT, _grouped(q, k)), dv


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
    seen = _between(torch.ones(queries, keys, dtype=torch.bool), last, first)
    return torch.zeros(queries, keys, dtype=torch.bfloat16).masked_fill_(~seen, float("-inf"))


def _between(x: Tensor, last: int, first: int | None) -> Tensor:
    """x, zero outside of these diagonals."""
    x.tril_(last)
    return x if first is None else x.triu_(first)


def _masked(scores: Tensor, tile: Tile) -> Tensor:
    if tile.hidden is not None:
        scores[..., tile.hidden.columns] += tile.hidden.mask
    return scores


def _shown(p: Tensor, tile: Tile) -> Tensor:
    """p, zero where hidden, whatever it was there."""
    if tile.hidden is not None:
        _between(p[..., tile.hidden.columns], tile.hidden.last, tile.hidden.first)
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
