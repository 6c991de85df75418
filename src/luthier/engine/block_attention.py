"""Attention on a CPU, block by block; a token's partial results are merged by their log-sum-exp.

Each block's backward, given the merged result and log-sum-exp, yields that block's part of the gradient: the
arithmetic of ring attention (Liu et al. 2023, arXiv:2310.01889).

All is computed in float32 whatever the model's dtype: flash attention for CPUs is no faster in bfloat16 (see
`product_attention`), and a sum of rounded parts would be less exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.engine.blocks import Block, blocks_of
from luthier.engine.layout import Layout
from luthier.engine.scores import Scores


class Kernel(Protocol):
    """One block: queries [G, H / G, L, D], keys and values [G, H / G, S, D], all in one dtype."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Its result, shaped as q, and the log-sum-exp of its scores [G, H / G, L]."""
        ...

    def backward(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, block: Block
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Its part of the gradients of q, k and v, given the merged result; those of k and v are [G, S, D]."""
        ...


@dataclass(frozen=True)
class Flash:
    """PyTorch's flash attention for CPUs. Scores are scaling · q · k."""

    scaling: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, block.causal, attn_mask=self._mask(block, q), scale=self.scaling
        )
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, block: Block
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, block.causal, attn_mask=self._mask(block, q), scale=self.scaling
        )
        return grad_q, grad_k.sum(1), grad_v.sum(1)

    def _mask(self, block: Block, like: Tensor) -> Tensor | None:
        if block.mask is None:
            return None
        return like.new_zeros(block.mask.shape).masked_fill_(~block.mask, float("-inf"))


@dataclass(frozen=True)
class SoftCapped:
    """Scores of cap · tanh(scaling · q · k / cap), as in Gemma 2, which no kernel for CPUs knows: written out."""

    scaling: float
    cap: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        scores = self._scores(self._tanh(q, k), block)
        lse = scores.logsumexp(-1)
        return (scores - lse[..., None]).exp_() @ v, lse

    def backward(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, block: Block
    ) -> tuple[Tensor, Tensor, Tensor]:
        tanh = self._tanh(q, k)
        weights = (self._scores(tanh, block) - lse[..., None]).exp_()
        grad_v = (weights.mT @ grad).sum(1)
        of_scores = weights.mul_(grad @ v.mT - (grad * out).sum(-1, keepdim=True))
        of_products = of_scores.mul_(1 - tanh * tanh).mul_(self.scaling)
        return of_products @ k, (of_products.mT @ q).sum(1), grad_v

    def _tanh(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.mT).mul_(self.scaling / self.cap).tanh_()

    def _scores(self, tanh: Tensor, block: Block) -> Tensor:
        scores = self.cap * tanh
        if block.causal:
            return scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu_(1), float("-inf"))
        return scores if block.mask is None else scores.masked_fill_(~block.mask, float("-inf"))


def in_blocks(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scores: Scores) -> Tensor:
    """[1, N, H, D] from query [1, H, N, D] and key, value [1, G, N, D], H a multiple of G, in value's dtype."""
    blocks = layout.once(("blocks", scores.window), lambda: blocks_of(layout, scores.window))
    kernel = Flash(scores.scaling) if scores.cap is None else SoftCapped(scores.scaling, scores.cap)
    out: Tensor = _BlockAttention.apply(query, key, value, scores.sinks, blocks, kernel)  # type: ignore[no-untyped-call]
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        blocks: list[Block],
        kernel: Kernel,
    ) -> Tensor:
        q, k, v = _grouped(query, key, value)
        groups, each, length, width = q.shape
        rows = q.new_empty(1, length, groups * each, width)
        out, lse = _by_group(rows.transpose(1, 2), groups), q.new_empty(groups, each, length)
        for block in blocks:
            at, keys = block.queries, block.keys
            part, part_lse = kernel.forward(q[:, :, at], k[:, :, keys], v[:, :, keys], block)
            if block.merge:
                merged = torch.logaddexp(lse[:, :, at], part_lse)
                out[:, :, at].lerp_(part, (part_lse - merged).exp_()[..., None])
                lse[:, :, at] = merged
            else:
                out[:, :, at], lse[:, :, at] = part, part_lse
        if sinks is not None:
            merged = torch.logaddexp(lse, sinks.to(lse.dtype).view(groups, each, 1))
            out *= (lse - merged).exp_()[..., None]
            lse = merged
        result = rows.to(value.dtype)
        ctx.blocks, ctx.kernel = blocks, kernel
        ctx.save_for_backward(query, key, value, sinks, result, lse)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, result, lse = ctx.saved_tensors
        q, k, v = _grouped(query, key, value)
        groups = k.shape[0]
        out, grad = (_by_group(x.to(q.dtype).transpose(1, 2), groups) for x in (result, gradients[0]))
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (q.new_zeros(groups, *k.shape[2:]) for _ in range(2))
        for block in ctx.blocks:
            at, keys = block.queries, block.keys
            of_queries = (grad[:, :, at], q[:, :, at], out[:, :, at], lse[:, :, at])
            part_q, part_k, part_v = ctx.kernel.backward(*of_queries, k[:, :, keys], v[:, :, keys], block)
            if block.merge:
                grad_q[:, :, at] += part_q
            else:
                grad_q[:, :, at] = part_q
            grad_k[:, keys] += part_k
            grad_v[:, keys] += part_v
        grad_sinks = None
        if sinks is not None:
            share = (sinks.to(lse.dtype).view(groups, -1, 1) - lse).exp()
            grad_sinks = -(share * (grad * out).sum(-1)).sum(-1).flatten().to(sinks.dtype)
        return (
            grad_q.flatten(0, 1)[None].to(query.dtype),
            grad_k[None].to(key.dtype),
            grad_v[None].to(value.dtype),
            grad_sinks,
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
