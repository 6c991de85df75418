"""RMSNorm in half the passes: three over its input forward and four backward, where autograd needs six and nine.

    y  = x r w,   r = 1 / sqrt(mean(x^2) + eps)                                       (arXiv 1910.07467)
    dx = r (g w) - x r^3 mean(g w x)

A frozen norm's weight needs no gradient. Sums are float32, as in the stock modules; x and r are all that is kept.
Compiled loops take one pass each way over memory, where those may be had.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from luthier.engine import compiled
from luthier.engine.instance import is_replaced, output_and_gradient, relative_error, replace_forward

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}

Routine = Callable[[Tensor, Tensor, float, float], Tensor]
"""x [..., H], weight [H], eps, offset → x normalised and multiplied with weight + offset, in the dtype of x."""


def fuse(model: nn.Module, routine: Routine | None = None) -> int:
    """Gives the frozen RMSNorms of this model instance that are still stock a routine; returns how many have it.

    A module first proves that it is one: its own forward and the routine agree on an input and its gradient, with its
    weight as it is (Llama) or as what it adds to one (Gemma). Without a routine, it is the one below.
    """
    routine, fused = routine or _with_offset, 0
    for module in model.modules():
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not type(module).__name__.endswith("RMSNorm") or weight is None or eps is None:
            continue
        if weight.requires_grad or is_replaced(module):
            continue
        offset = next((offset for offset in (0.0, 1.0) if _agrees(module, routine, weight, eps, offset)), None)
        if offset is not None:
            replace_forward(module, partial(_forward, routine, weight, eps, offset))
            fused += 1
    return fused


def _agrees(module: nn.Module, routine: Routine, weight: Tensor, eps: float, offset: float) -> bool:
    x = torch.linspace(-1, 2, weight.numel(), device=weight.device, dtype=weight.dtype)[None]
    y, dx = output_and_gradient(module, x)
    try:
        found, found_dx = output_and_gradient(partial(_forward, routine, weight, eps, offset, None), x)
    except Exception:  # whatever a kernel's compiler or the card cannot do, the module's own forward can
        return False
    same = torch.allclose(found, y, rtol=TOLERANCE[x.dtype], atol=1e-6)
    return same and relative_error(found_dx, dx) <= TOLERANCE[x.dtype]


def _forward(routine: Routine, weight: Tensor, eps: float, offset: float, own: object, x: Tensor) -> Tensor:
    return routine(x, weight, eps, offset)


def _with_offset(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    return rms_norm(x, weight.float() + offset, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H] normalised and multiplied with a frozen weight [H], in the dtype of x."""
    y: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        weight = weight.float()
        if compiled.fits(x):
            y, r = compiled.rms_norm(x, weight, eps)
        else:
            wide = x.float()
            mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1]
            r = mean_square.add_(eps).rsqrt_()
            y = (wide * r).mul_(weight).to(x.dtype)
        ctx.save_for_backward(x, r, weight)
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        x, r, weight = ctx.saved_tensors
        if compiled.fits(x):
            return compiled.rms_norm_backward(g, x, weight, r), None, None
        wide, gw = x.float(), g.float() * weight
        mean = torch.linalg.vecdot(gw, wide)[..., None] / x.shape[-1]
        return gw.mul_(r).addcmul_(wide, mean * r**3, value=-1).to(x.dtype), None, None
