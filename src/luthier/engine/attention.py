"""Attention over a flat batch, registered with transformers under the name `luthier_flat`.

transformers passes a forward's extra keyword arguments down to its attention function, so the layout arrives here
without a change to any model's code (`transformers.AttentionInterface`, `AttentionMaskInterface`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each sequence to the shared prefix and itself.

    Args:
        query: [1, H, N, D]; key, value: [1, G, N, D] with H a multiple of G.
        layout: how the N tokens belong together.
        sliding_window: a token sees so many latest tokens, itself included.

    Returns:
        [1, N, H, D] and None (no attention weights).

    Sequences are laid side by side as [B, H, L, D], padded on the right only inside this function: a causal mask hides
    what stands on the right, so one mask serves all of them.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = causal_mask(q.shape[2], k.shape[2], sliding_window, q.device)
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, dropout_p=dropout
        )

    own_q, own_k, own_v = (x[0][:, layout.own_index].transpose(0, 1) for x in (query, key, value))  # [B, H, L, D]
    p = layout.prefix
    if p == 0:
        return _flat(attend(own_q, own_k, own_v), layout)[None], None
    rows = len(layout.lengths)
    prefix_k, prefix_v = key[:, :, :p], value[:, :, :p]
    own = attend(
        own_q,
        torch.cat([prefix_k.expand(rows, -1, -1, -1), own_k], dim=2),
        torch.cat([prefix_v.expand(rows, -1, -1, -1), own_v], dim=2),
    )
    shared = attend(query[:, :, :p], prefix_k, prefix_v)
    return torch.cat([shared[0].transpose(0, 1), _flat(own, layout)])[None], None


def _flat(padded: Tensor, layout: Layout) -> Tensor:
    """[B, H, L, D] → [N - prefix, H, D]: the real tokens, in the flat row's order."""
    return padded.transpose(1, 2).flatten(0, 1)[layout.own_places]


def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """[queries, keys] bool, True where the last `queries` of `keys` tokens may look; None where `is_causal` says it.

    queries=2, keys=4, window=3:   1 1 1 0      the window counts the token itself
                                   0 1 1 1
    """
    if queries == keys and (window is None or window >= keys):
        return None
    behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None]
    mask = behind >= 0
    return mask if window is None else mask & (behind < window)


def no_mask(*_: Any, **__: Any) -> None:
    """The layout says it all: transformers builds no mask for a flat batch."""


def register() -> None:
    """Makes `attn_implementation="luthier_flat"` known to transformers. Doing it twice is harmless."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, flat_attention)
    AttentionMaskInterface.register(NAME, no_mask)
