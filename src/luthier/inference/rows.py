"""LoRA for a flat row whose tokens belong to different adapters: each run of tokens with its own.

y = x W^T + b                         one product for all tokens
y[i:j] += (x[i:j] A^T) (s B)^T        for each adapter, in place, in the dtype of W
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from luthier.engine.instance import is_replaced, replace_forward


class NotTheRow(Exception):
    """A layer was given something else than the flat row."""


class Rows:
    """Which tokens belong to which adapter, for the LoRA layers of one model instance.

    spans: (adapter, first token, end), and tokens: how many there are in all; set before each forward.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[str, int, int]] = []
        self.tokens = 0

    def install(self, model: Any, adapters: set[str]) -> bool:
        """Gives the LoRA layers of the model this forward. False, and nothing done, where one is more than that."""
        from peft.tuners.lora import LoraLayer

        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        if not all(_is_plain(layer, adapters) for layer in layers):
            return False
        for layer in layers:
            if is_replaced(layer):
                del layer.forward
            dtype = layer.base_layer.weight.dtype
            # Made once: PEFT keeps float32 masters, of which each product would make a copy.
            factors = {
                name: (
                    layer.lora_A[name].weight.detach().to(dtype).T.contiguous(),
                    (layer.lora_B[name].weight.detach() * layer.scaling[name]).to(dtype).T.contiguous(),
                )
                for name in adapters
                if name in layer.lora_A
            }
            replace_forward(layer, partial(self._forward, layer.base_layer, factors))
        return True

    def _forward(
        self, base: nn.Module, factors: dict[str, tuple[Tensor, Tensor]], own: Callable[..., Tensor], x: Tensor
    ) -> Tensor:
        y: Tensor = base(x)
        rows, out = x.flatten(0, -2), y.flatten(0, -2)
        if len(rows) != self.tokens:
            raise NotTheRow
        for name, start, end in self.spans:
            if name in factors:
                down, up = factors[name]
                out[start:end].addmm_(rows[start:end] @ down, up)
        return y


def _is_plain(layer: Any, adapters: set[str]) -> bool:
    """Whether its adapters are `s B A x` and nothing more, on an ordinary linear layer."""
    from peft.tuners import lora

    mine = [name for name in layer.lora_A if name in adapters]
    return (
        type(layer) is lora.Linear
        and type(layer.base_layer) is nn.Linear
        and not layer.merged
        and not any(name in layer.lora_variant for name in mine)
        and all(layer.lora_A[name].bias is None and layer.lora_B[name].bias is None for name in mine)
    )
