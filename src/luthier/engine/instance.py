"""Another forward for one module instance, and the way back. Classes stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn


class Replaced(partial[Any]):
    """A forward that stands in for a module's own, which it takes as its first argument."""


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Calls of this module become `forward(own, *args, **kwargs)`, `own` being the forward it had."""
    module.forward = Replaced(forward, module.forward)


def restore(model: nn.Module) -> None:
    """Gives every module of the model the forward of its class back."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), Replaced):
            del module.forward
