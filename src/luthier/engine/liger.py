"""Elementwise layers by Liger's Triton kernels on a GPU (CUDA or ROCm), where `liger_kernel` is installed.

Its autograd functions are called on instances that proved to be the same; its own patches, which change the modules
and classes of transformers, never are. Rotary embeddings stay the module's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from luthier.engine import mlp, norm


def fuse(model: Any) -> list[str]:
    """Gives this model instance what kernels there are; says which of its layers have one. None off the GPU."""
    ops = load_ops() if model.device.type == "cuda" else None
    if ops is None:
        return []
    counts = {
        "norms": norm.fuse(model, partial(_rms_norm, ops)),
        "gated MLPs": mlp.fuse(model, ops.LigerSiLUMulFunction.apply, ops.LigerGELUMulFunction.apply),
    }
    return [name for name, count in counts.items() if count]


def load_ops() -> Any | None:
    """The module with Liger's autograd functions, or None where it or Triton cannot be imported."""
    try:
        from liger_kernel import ops
    except Exception:  # not there; or Triton finds no driver, in words of its own
        return None
    return ops


def _rms_norm(ops: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """Llama multiplies with its weight in the dtype of x, Gemma with 1 + weight in float32.

    Not in place: the gradient of the output is also that of the residual beside the norm (Gemma 2).
    """
    casting, in_place = "gemma" if offset else "llama", False
    y: Tensor = ops.LigerRMSNormFunction.apply(x, weight, eps, offset, casting, in_place)
    return y
