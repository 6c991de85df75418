"""How a model's requests are computed: together, unless something speaks against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from luthier.choice import Choice
from luthier.engine import recurrent
from luthier.engine.engines import stock_attention
from luthier.engine.instance import relative_error, restore
from luthier.inference.adapters import Adapters
from luthier.inference.decode import Decoder, OneByOne, Running
from luthier.inference.kept import Shape
from luthier.inference.together import Together

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 1e-2}
"""Largest relative difference of the two ways' logits that still counts as rounding. In bfloat16 the two round in
another order: SmolLM2's differ by 2 %."""


def pick_decoder(adapters: Adapters, *, kept_bytes: int) -> Choice[Decoder]:
    """The decoder, set up on this model instance, and why. It must show the logits of the plain way first."""
    plain = OneByOne(adapters)
    causal = adapters.causal
    stock = stock_attention(causal)
    causal.set_attn_implementation(stock)
    reason = next((why for decline in DECLINES if (why := decline(causal)) is not None), None)
    if reason is not None:
        return Choice(plain, f"one request at a time: {reason}")
    together: Together | None = None
    try:
        asked = [None, *sorted(adapters.loaded)]
        ids = _probe(causal.config.get_text_config().vocab_size)
        expected = torch.cat([_two_tokens(plain, adapter, ids) for adapter in asked])
        together = Together(adapters, _shape(causal), kept_bytes=kept_bytes)
        off = relative_error(torch.cat([_two_tokens(together, adapter, ids) for adapter in asked]), expected)
        reason = f"its logits are off by {off:.1e}" if off > TOLERANCE[causal.dtype] else None
    except Exception as error:  # whatever a model's own code cannot do with a flat row
        reason = f"it cannot take a flat row ({str(error).partition(chr(10))[0]})"
    if reason is None and together is not None:
        return Choice(together, f"requests together in one forward; its logits differ from the plain ones by {off:.1e}")
    restore(adapters.model)
    causal.set_attn_implementation(stock)
    return Choice(plain, f"one request at a time: {reason}")


def _probe(vocabulary: int) -> list[int]:
    """Tokens from all over the vocabulary. The first ones are special, and a row of those is beyond what bfloat16 can
    compute: SmolLM2's logits behind them are 59 % off those of float32, and 1 % behind these."""
    return [vocabulary * place // 7 for place in range(1, 7)]


def _two_tokens(decoder: Decoder, adapter: str | None, ids: list[int]) -> Tensor:
    """The logits behind a prompt, and behind one token more."""
    request = Running(ids[:-1], adapter)
    with torch.no_grad():
        _, first = decoder.step([request])
        request.ids.append(ids[-1])
        _, second = decoder.step([request])
    decoder.end(request, keep=False)
    decoder.forget(adapter)
    return torch.cat([first, second])


def _shape(causal: Any) -> Shape:
    """What a token's keys and values take, seen in a forward. Raises ValueError where layers differ."""
    from transformers import AttentionInterface

    seen: list[tuple[int, int, int, int]] = []

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        seen.append((module.layer_idx, key.shape[1], key.shape[3], value.shape[3]))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    name, before = "luthier_shape", causal.config._attn_implementation
    AttentionInterface.register(name, attend)
    causal.set_attn_implementation(name)
    try:
        with torch.no_grad():
            causal(input_ids=torch.tensor([[1]], device=causal.device), use_cache=False)
    finally:
        causal.set_attn_implementation(before)
    if [layer for layer, *_ in seen] != list(range(len(seen))) or len({tuple(sizes) for _, *sizes in seen}) != 1:
        raise ValueError("its layers do not all keep keys and values of the same size")
    _, heads, key_width, value_width = seen[0]
    return Shape(len(seen), heads, key_width, value_width, causal.dtype, causal.device)


# Why a model's requests cannot be computed together. Each answers None where it has nothing against it.


def _other_layers(causal: Any) -> str | None:
    kinds = set(getattr(causal.config.get_text_config(), "layer_types", None) or ())
    other = sorted(kinds - {"full_attention", "sliding_attention"})
    return f"layers of kind {', '.join(other)} keep something else than keys and values" if other else None


def _linear_attention(causal: Any) -> str | None:
    return "linear attention carries a state along" if recurrent.layers_of(causal) else None


def _no_attention_interface(causal: Any) -> str | None:
    if not getattr(causal, "_supports_attention_backend", False):
        return f"{type(causal).__name__} does not go through transformers' attention interface"
    return None


DECLINES: tuple[Callable[[Any], str | None], ...] = (_other_layers, _linear_attention, _no_attention_interface)
