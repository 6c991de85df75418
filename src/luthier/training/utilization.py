"""Model FLOPs utilization (MFU): how much of the machine's matrix products the training comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from luthier.hardware.compute import measure_rate
from luthier.training.activations import decoder_layers

FROZEN, LEARNED = 4, 6
"""FLOP a weight and token: forward and the gradient of the input, 2 each, and 2 more for the weight's own gradient."""


@dataclass(frozen=True)
class Utilization:
    """`token`: FLOP of the layers' weights for a token; `label`: of the head for a labelled one; `rate`: FLOP/s.

    The products of attention scores are not counted, nor a forward that is run again: what the rows need, not what is
    spent on them.
    """

    token: int
    label: int
    rate: float

    def share(self, computed_tokens: int, labels: int, seconds: float) -> float | None:
        """Of the machine's rate; None where no time has passed."""
        return (self.token * computed_tokens + self.label * labels) / seconds / self.rate if seconds > 0 else None


def utilization(model: Any, device: str, dtype: str) -> Utilization | None:
    """None for a mixture of experts, of whose weights a token meets a few, and where products cannot be measured."""
    rate = measure_rate(device, dtype)
    layers, config = decoder_layers(model), model.config.get_text_config()
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    if isinstance(rate, str) or not layers or experts:
        return None
    head = model.get_output_embeddings().weight.numel()
    return Utilization(sum(map(_layer, layers)), FROZEN * head, rate)


def _layer(layer: nn.Module) -> int:
    weights = [parameter for parameter in layer.parameters() if parameter.dim() > 1]
    return sum((LEARNED if weight.requires_grad else FROZEN) * weight.numel() for weight in weights)
