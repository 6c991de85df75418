"""Attention over a flat batch, registered with transformers under the name `luthier_flat`.

transformers passes a forward's extra keyword arguments down to its attention function, so the layout arrives here
without a change to any model's code (`transformers.AttentionInterface`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from luthier.choice import Choice
from luthier.engine.block_attention import in_blocks
from luthier.engine.flash import in_flashes
from luthier.engine.instance import relative_error
from luthier.engine.layout import Layout, Segment
from luthier.engine.product_attention import in_products
from luthier.engine.scores import Scores

NAME = "luthier_flat"

Kernel = Callable[[Tensor, Tensor, Tensor, Layout, Scores], Tensor]
"""query [1, H, N, D], key and value [1, G, N, D] → [1, N, H, D]."""


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
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = None if sliding_window is None or sliding_window >= layout.longest else sliding_window
    scores = Scores(scaling, window, softcap, s_aux)
    if dropout > 0 or query.shape[-1] != value.shape[-1]:
        return dense(query, key, value, layout, scores, dropout=dropout), None
    kernel = standing_in.get() or pick_kernel(query.device.type, value.dtype, value.shape[-1], scores.plain).value
    return kernel(query, key, value, layout, scores), None


def dense(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scores: Scores, *, dropout: float = 0.0) -> Tensor:
    """With one mask [N, N] for the whole flat row: works everywhere, and costs what it hides."""
    mask = layout.once(("mask", scores.window), lambda: layout.mask(scores.window))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if scores.plain:
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scores.scaling, dropout_p=dropout)
        return out.transpose(1, 2)
    products = (query @ key.mT * scores.scaling).float()
    if scores.cap is not None:
        products = scores.cap * torch.tanh(products / scores.cap)
    products = products.masked_fill(~mask, float("-inf"))
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(1, -1, 1, 1).expand(*products.shape[:3], 1)
        products = torch.cat([products, sinks], dim=-1)
    weights = torch.dropout(products.softmax(-1)[..., : key.shape[2]].to(value.dtype), dropout, train=True)
    return (weights @ value).transpose(1, 2)


standing_in: ContextVar[Kernel | None] = ContextVar("standing_in", default=None)
"""What computes attention on the meta device, in the place of the kernels of the device that is thought of."""


def kernel_without_values(device: str, dtype: torch.dtype, width: int) -> Kernel:
    """A kernel that allocates on the meta device what this device's does. A GPU's keep q, k, v, result and lse."""
    return _fused if device == "cuda" else pick_kernel(device, dtype, width, True).value


def _fused(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scores: Scores) -> Tensor:
    out: Tensor = _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = value.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, out.new_empty(out.shape[1:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def key_heads(config: Any) -> tuple[int, int]:
    """How many heads keys have, and their width; of the first layer, where layers differ (Gemma 4)."""
    text = config.get_text_config()
    first = text.per_layer_config[0] if hasattr(text, "per_layer_config") else text
    heads = first.num_attention_heads
    width = getattr(first, "head_dim", None) or first.hidden_size // heads
    return getattr(first, "num_key_value_heads", None) or heads, width


@functools.cache
def pick_kernel(device: str, dtype: torch.dtype, width: int, plain: bool) -> Choice[Kernel]:
    """What computes attention on this device for heads of this width, and why. Resolved once a process.

    A GPU's kernels must show the result and the gradients of the dense mask first: cards, drivers and compilers differ.

    Args:
        plain: whether scores are no more than products, within a window or not.
    """
    if device == "cpu":
        if dtype == torch.bfloat16:
            return Choice(in_products, "attention in grouped products")
        return Choice(in_blocks, "attention in blocks")
    if device != "cuda":
        return Choice(dense, f"attention with a dense mask, as there is no other on {device}")
    samples = (TREE, LONGER_TREE, SIDE_BY_SIDE)
    if plain:
        if all(fault(in_flashes, sample, dtype, width, device) is None for sample in samples):
            return Choice(in_flashes, "attention by flash attention")
        return pick_kernel(device, dtype, width, False)
    # Imported here: they bring PyTorch's compiler with them, which takes half a minute the first time.
    from torch.nn.attention.flex_attention import flex_attention

    from luthier.engine.gpu_attention import Flex

    flex = Flex(torch.compile(flex_attention, dynamic=True))
    why = next((each for sample in samples[:2] if (each := fault(flex, sample, dtype, width, device))), None)
    if why is None:
        return Choice(flex, "attention by FlexAttention")
    return Choice(dense, f"attention by a dense mask, as FlexAttention {why}")


def named(device: str, dtype: torch.dtype, width: int, *, plain: bool) -> str:
    """What computes a model's attention. `plain`: whether all its scores are."""
    usual = pick_kernel(device, dtype, width, True).reason
    if plain or (other := pick_kernel(device, dtype, width, False).reason) == usual:
        return usual
    return f"{usual}, with capped scores {other}"


TREE = Layout((Segment(0, 150, 400, 0), Segment(150, 251, 251, 150), Segment(251, 400, 400, 150)))
LONGER_TREE = Layout((Segment(0, 150, 700, 0), Segment(150, 551, 551, 150), Segment(551, 700, 700, 150)))
SIDE_BY_SIDE = Layout((Segment(0, 150, 150, 0), Segment(150, 251, 251, 0), Segment(251, 400, 400, 0)))
LARGEST_ERROR = {torch.float32: 1e-2, torch.bfloat16: 2e-2, torch.float16: 1e-2}  # in float32 with TF32 products


def fault(kernel: Kernel, sample: Layout, dtype: torch.dtype, width: int, device: str) -> str | None:
    """What is wrong with a kernel's result or gradients, as in `fails (no compiler)` or `is off by 3.0e-01`."""
    generator = torch.Generator().manual_seed(0)
    sample = Layout(sample.segments, device)
    query, key, value = (
        torch.randn(1, heads, sample.num_tokens, width, generator=generator).to(device, dtype).requires_grad_()
        for heads in (4, 2, 2)
    )

    def results(kernel: Kernel) -> Tensor:
        out = kernel(query, key, value, sample, Scores(width**-0.5))
        gradients = torch.autograd.grad(out, (query, key, value), out.detach())
        return torch.cat([x.flatten() for x in (out.detach(), *gradients)])

    try:
        found = results(kernel)
    except Exception as error:  # whatever a compiler or a card cannot do, the dense mask can
        return f"fails ({str(error).strip().partition(chr(10))[0]})"
    off = relative_error(found, results(dense))
    return None if off <= LARGEST_ERROR[dtype] else f"is off by {off:.1e}"


def register() -> None:
    """Makes `attn_implementation="luthier_flat"` known to transformers. Doing it twice is harmless.

    Without a mask of that name: transformers then makes none, and does not wait for a GPU to look at the positions.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, flat_attention)
