"""Rotary embeddings in one pass over queries and one over keys, where stock modules take six each and autograd nine.

    y = [x1 cos1 - x2 sin1,  x2 cos2 + x1 sin2],   x = [x1, x2]                       (arXiv 2104.09864)

What is wider than cos and sin stays as it is (Phi). A model's attention finds its function as a global name of its
module, which others share. So an instance is given its own forward once more, with the name bound to a function that
takes the loop of `compiled` where that may be had, and the module's function elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from luthier.engine import compiled
from luthier.engine.instance import is_replaced, relative_error, replace_forward
from luthier.engine.norm import TOLERANCE

NAME = "apply_rotary_pos_emb"

Rotation = Callable[..., Any]
"""Most often query [B, H, N, D], key [B, G, N, D], cos, sin [B, N, R] → both rotated."""


def fuse(model: nn.Module) -> int:
    """Gives the modules of this model instance that call such a function the one below; returns how many have it."""
    bound: dict[FunctionType, FunctionType] = {}
    fused = 0
    for module in model.modules():
        forward = type(module).forward
        if not isinstance(forward, FunctionType) or is_replaced(module):
            continue
        if NAME not in forward.__code__.co_names or NAME not in forward.__globals__:
            continue
        if forward not in bound:
            bound[forward] = _rebound(forward, _Rotated(forward.__globals__[NAME]))
        replace_forward(module, partial(_call, MethodType(bound[forward], module)))
        fused += 1
    return fused


def _rebound(function: FunctionType, rotated: Rotation) -> FunctionType:
    """The same function, in which the name means another one."""
    names = {**function.__globals__, NAME: rotated}
    other = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    other.__kwdefaults__ = function.__kwdefaults__
    return other


def _call(forward: Callable[..., Any], own: object, *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)


class _Rotated:
    """A module's function, or the loop, which first proves on what it is given that it does the same.

    Forward only, as it may be in a layer whose forward is run again: there all that is kept for a backward is counted.
    """

    def __init__(self, own: Rotation) -> None:
        self.own = own
        self._same: dict[torch.dtype, bool] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 4 or not _fits(*args):
            return self.own(*args, **kwargs)
        query, key, cos, sin = args
        if query.dtype not in self._same:
            self._same[query.dtype] = self._agrees(*args)
        if not self._same[query.dtype]:
            return self.own(*args)
        return rotate(query, cos, sin), rotate(key, cos, sin)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _agrees(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> bool:
        pairs = zip((query, key), self.own(query, key, cos, sin), strict=True)
        return all(relative_error(rotate(x, cos, sin), expected) <= TOLERANCE[x.dtype] for x, expected in pairs)


def _fits(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether a loop may be had: all in one dtype, cos and sin for each token."""
    each = cos.shape[:-1] == sin.shape[:-1] == (query.shape[0], query.shape[2])
    return each and len({x.dtype for x in (query, key, cos, sin)}) == 1 and compiled.fits(query)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, N, D] turned by cos and sin [B, N, R], which need no gradient."""
    y: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return compiled.rotate(x.transpose(1, 2), cos, sin).transpose(1, 2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        back = sin.roll(sin.shape[-1] // 2, -1).neg_()
        return compiled.rotate(g.transpose(1, 2), cos, back).transpose(1, 2), None, None
