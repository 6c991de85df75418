"""LoRA for a flat row whose tokens belong to different adapters: each run of tokens with its own.

    y = x W^T + b                         one product for all tokens
    y[i:j] += (x[i:j] A^T) (s B)^T        for each adapter, in place

The adapters' products are float32, as their masters are. They are not merged into the weights: in bfloat16 that would
round an adapter away where it changes a weight by less than its last bit, and the base and other adapters need the
weights too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
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
        self._input = self._wide = torch.empty(0)

    def install(self, model: Any, adapters: set[str]) -> bool:
        """Gives the LoRA layers of the model this forward. False, and nothing done, where one is more than that."""
        from peft.tuners.lora import LoraLayer

        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        if not all(_is_plain(layer, adapters) for layer in layers):
            return False
        for layer in layers:
            if is_replaced(layer):
                del layer.forward
            factors = {
                name: (
                    layer.lora_A[name].weight.detach().float().T.contiguous(),
                    (layer.lora_B[name].weight.detach().float() * layer.scaling[name]).T.contiguous(),
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
        rows, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        if len(rows) != self.tokens:
            raise NotTheRow
        if self.spans and x is not self._input:  # q, k and v have the same
            self._input, self._wide = x, rows.float()
        for name, start, end in self.spans:
            if name in factors:
                down, up = factors[name]
                narrow = self._wide[start:end] @ down
                if out.dtype == torch.float32:
                    out[start:end].addmm_(narrow, up)
                else:
                    out[start:end].add_(narrow @ up)
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
