"""Linear layers for a flat row whose tokens belong to different adapters: each run of tokens with its own.

For layers W1, W2, … that read the same input (q, k and v; gate and up; or one alone):

    y = x [W1; W2; …]^T + b               one product for all tokens
    t = x[i:j] [A1; A2; …]^T              for each adapter
    y[i:j, part k] += t[:, part k] (s Bk)^T      in place

The adapters' products are float32, as their masters are. They are not merged into the weights: in bfloat16 that would
round an adapter away where it changes a weight by less than its last bit, and the base and other adapters need the
weights too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.engine.instance import replace_forward
from luthier.inference.products import Products


class NotTheRow(Exception):
    """A layer was given something else than the flat row."""


class Rows:
    """Which tokens belong to which adapter, for the linear layers of one model instance.

    spans: (adapter, first token, end), and tokens: how many there are in all; set before each forward.
    """

    def __init__(self, product: Products) -> None:
        self.product = product
        self.spans: list[tuple[str, int, int]] = []
        self.tokens = 0

    def install(self, model: Any, adapters: set[str]) -> bool:
        """Gives the LoRA layers of the model this forward. False, and nothing done, where one is more than that."""
        from peft.tuners.lora import LoraLayer

        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        if not all(_is_plain(layer, adapters) for layer in layers):
            return False
        for layer in layers:
            base = layer.base_layer
            linears = Linears(self, [layer], [(base.weight, base.bias)], adapters)
            replace_forward(layer, partial(self._forward, linears))
        return True

    def _forward(self, linears: Linears, own: Callable[..., Tensor], x: Tensor) -> Tensor:
        row = x.reshape(-1, x.shape[-1])
        if len(row) != self.tokens:
            raise NotTheRow
        return linears(row).view(*x.shape[:-1], -1)


class Linears:
    """Layers with one input, plain or LoRA.

    products: weight [out, in] and bias of each, or of several of them that lie one behind the other.
    """

    def __init__(
        self, rows: Rows, layers: Sequence[Any], products: Sequence[tuple[Tensor, Tensor | None]], adapters: set[str]
    ) -> None:
        self.rows = rows
        self.products = [(weight.detach(), bias) for weight, bias in products]
        self.factors = {name: _factors(layers, name) for name in adapters}

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, in], the whole row → [N, sum of out]."""
        made = [self.rows.product(x, weight, bias) for weight, bias in self.products]
        y = made[0] if len(made) == 1 else torch.cat(made, dim=-1)
        for name, start, end in self.rows.spans:
            down, up = self.factors[name]
            if down is None:
                continue
            narrow = x[start:end].float() @ down
            for ranks, columns, factor in up:
                out = y[start:end, columns]
                if y.dtype == torch.float32:
                    out.addmm_(narrow[:, ranks], factor)
                else:
                    out.add_(narrow[:, ranks] @ factor)
        return y


def _factors(layers: Sequence[Any], name: str) -> tuple[Tensor | None, list[tuple[slice, slice, Tensor]]]:
    """The adapter of these layers: [A1; A2; …]^T, and for each that has it (its part of t, its part of y, (s B)^T)."""
    down, up = [], []
    rank = out = 0
    for layer in layers:
        first, out = out, out + layer.out_features
        if name in getattr(layer, "lora_A", ()):
            down.append(layer.lora_A[name].weight.detach().float())
            factor = (layer.lora_B[name].weight.detach().float() * layer.scaling[name]).T.contiguous()
            up.append((slice(rank, rank + len(factor)), slice(first, out), factor))
            rank += len(factor)
    return (torch.cat(down).T.contiguous() if down else None), up


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
