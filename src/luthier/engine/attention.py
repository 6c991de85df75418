"""Attention over a flat batch, registered with transformers under the name `luthier_flat`.

transformers passes a forward's extra keyword arguments down to its attention function, so the layout arrives here
without a change to any model's code (`transformers.AttentionInterface`, `AttentionMaskInterface`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from luthier.engine.block_attention import Flash, SoftCapped, block_attention
from luthier.engine.blocks import blocks_of
from luthier.engine.layout import Layout

NAME = "luthier_flat"


def flat_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each token to what its sequences hold before it.

    Args:
        query: [1, H, N, D]; key, value: [1, G, N, D] with H a multiple of G.
        layout: how the N tokens belong together.
        scaling: of the products of query and key; 1 / sqrt(D) if None.
        sliding_window: a token sees so many latest tokens, itself included.
        softcap: scores become softcap · tanh(score / softcap).
        s_aux: [H], attention sinks: a score of each head that takes its share of the softmax and gives no value.

    Returns:
        [1, N, H, D] and None (no attention weights).
    """
    window = None if sliding_window is None or sliding_window >= layout.longest else sliding_window
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu" and dropout == 0 and query.shape[-1] == value.shape[-1]:
        blocks = layout.once(("blocks", window), lambda: blocks_of(layout, window))
        kernel = SoftCapped(scaling, softcap) if softcap else Flash(scaling)
        return block_attention(query, key, value, blocks, kernel, s_aux), None
    mask = layout.once(("mask", window), lambda: layout.mask(window))
    return dense_attention(query, key, value, mask, scaling, dropout, softcap=softcap, sinks=s_aux), None


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """[1, N, H, D] with one mask for the whole flat row: works everywhere, and costs what it hides."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if softcap is None and sinks is None:
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, dropout_p=dropout)
        return out.transpose(1, 2)
    scores = (query @ key.mT * scaling).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    weights = torch.dropout(scores.softmax(-1)[..., : key.shape[2]].to(value.dtype), dropout, train=True)
    return (weights @ value).transpose(1, 2)


def no_mask(*_: Any, **__: Any) -> None:
    """The layout says it all: transformers builds no mask for a flat batch."""


def register() -> None:
    """Makes `attn_implementation="luthier_flat"` known to transformers. Doing it twice is harmless."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, flat_attention)
    AttentionMaskInterface.register(NAME, no_mask)
