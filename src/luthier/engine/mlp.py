"""Gated MLPs, `down(act(gate(x)) * up(x))`, of whose [N, I] values only gate and up are kept for the backward pass.

Written out, the middle keeps act(gate) too, and reads and writes its values four times forward; a kernel does it in one
pass each way. Where there is none, what an adapted `down` reads is computed again from gate and up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from luthier.engine import lora
from luthier.engine.instance import evaluating, is_replaced, output_and_gradient, relative_error, replace_forward

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
CHILDREN = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""A module of more parts than these does more."""

Activation = Callable[[Tensor], Tensor]
Middle = Callable[[Tensor, Tensor], Tensor]
"""gate, up [..., I] → act(gate) * up."""

T = TypeVar("T")

tanh_gelu: Activation = partial(gelu, approximate="tanh")


def fuse(model: Any, silu_mul: Middle, gelu_mul: Middle) -> int:
    """Gives the gated MLPs of this model instance such a kernel; returns how many have it.

    A module first proves that it is one: its own forward and the one below agree on an input and its gradient.
    """
    fused = 0
    with evaluating(model):  # an adapter's dropout would tell the two apart
        for module in _gated(model):
            middle = _known(module.act_fn, {silu: silu_mul, tanh_gelu: gelu_mul})
            fused += middle is not None and _replaced(module, partial(_forward, module, middle), model.dtype)
    return fused


def keep_less(model: Any) -> int:
    """Lets those of this model instance that are no kernel's yet keep gate and up alone; returns how many do.

    For MLPs whose `down` has a fused adapter. They prove themselves as above.
    """
    with evaluating(model):
        adapted = [m for m in _gated(model) if is_replaced(m.down_proj) and not is_replaced(m)]
        return sum(_replaced(module, partial(_adapted, module, _act(module)), model.dtype) for module in adapted)


def _gated(model: Any) -> list[Any]:
    return [m for m in model.modules() if {name for name, _ in m.named_children()} == CHILDREN]


def _replaced(module: Any, forward: Callable[..., Tensor], dtype: torch.dtype) -> bool:
    """Gives the module this forward if both agree."""
    agree = _agrees(module, forward, dtype)
    if agree:
        replace_forward(module, forward)
    return agree


def _known(act: Activation, of: dict[Activation, T]) -> T | None:
    """What belongs to this activation: families name it in many ways, so it is asked for its values."""
    x = torch.linspace(-6, 6, 121)
    found = act(x)
    return next((value for activation, value in of.items() if torch.allclose(found, activation(x))), None)


def _act(module: Any) -> Activation:
    """SiLU by that name, which is computed in compiled loops, or the module's own."""
    return _known(module.act_fn, {silu: silu}) or module.act_fn


def _agrees(module: Any, forward: Callable[..., Tensor], dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, module.gate_proj.in_features, generator=generator).to(next(module.parameters()).device, dtype)
    expected = output_and_gradient(module, x)
    try:
        found = output_and_gradient(partial(forward, None), x)
    except Exception:  # whatever a kernel's compiler or the card cannot do, the module's own forward can
        return False
    return all(relative_error(*pair) <= TOLERANCE[dtype] for pair in zip(found, expected, strict=True))


def _forward(module: Any, middle: Middle, own: object, x: Tensor) -> Tensor:
    y: Tensor = module.down_proj(middle(module.gate_proj(x), module.up_proj(x)))
    return y


def _adapted(module: Any, act: Activation, own: object, x: Tensor) -> Tensor:
    return lora.gated_linear(act, module.gate_proj(x), module.up_proj(x), module.down_proj)
