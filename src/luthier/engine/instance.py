"""Another forward or mode for one module instance, and the way back. Classes stay as they are."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Replaced(partial[Any]):
    """A forward that stands in for a module's own, which it takes as its first argument."""


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Calls of this module become `forward(own, *args, **kwargs)`, `own` being the forward it had."""
    module.forward = Replaced(forward, module.forward)


def is_replaced(module: nn.Module) -> bool:
    return isinstance(vars(module).get("forward"), Replaced)


def restore(model: nn.Module) -> None:
    """Gives every module of the model the forward of its class back."""
    for module in model.modules():
        if is_replaced(module):
            del module.forward


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The whole model in training or evaluation mode; after it, errors included, each module is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluating(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """`in_mode`, as a model is asked: nothing is dropped."""
    return in_mode(model, training=False)


def takes_logits_to_keep(model: Any) -> bool:
    """Whether logits can be had of some tokens alone: a row's whole [T, vocabulary] may be more than memory holds."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(causal.forward).parameters


def output_and_gradient(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """What a forward makes of x, and the gradient of x when that of the output is a slope from -1 to 1."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = forward(x)
        slope = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view_as(y)
        return y.detach(), torch.autograd.grad(y, x, slope)[0]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, summed up in float32."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())
