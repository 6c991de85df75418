"""Layers that carry a state along a sequence (Gated DeltaNet: Qwen3-Next, Qwen3.5), in a flat batch.

transformers' own code for them takes rows, so only inside these layers is the flat row laid out as rows, a shared
prefix once for each: causal, they never look at what fills a row up on its right. All else stays flat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from luthier.engine.instance import replace_forward
from luthier.engine.layout import Layout

KIND = "linear_attention"
"""Its name in a config's `layer_types`."""
MODULE = "linear_attn"
"""Its name in a decoder layer."""


def take_flat_rows(model: nn.Module) -> None:
    """Lets such layers of this model instance take a flat row: [1, N, H] with its layout."""
    for layer in layers_of(model):
        replace_forward(layer, _row_by_row)


def layers_of(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] == MODULE]


def _row_by_row(
    own: Callable[..., Tensor], hidden_states: Tensor, *args: Any, layout: Layout | None = None, **kwargs: Any
) -> Tensor:
    if layout is None:
        return own(hidden_states, *args, **kwargs)
    out = own(hidden_states[0, layout.rows], *args, **kwargs)
    return out.flatten(0, 1)[None, layout.places]
