"""x W^T for few rows of x, in the way that this machine computes it fastest.

For a few rows a product should take as long as reading W does, but libraries are made for many. On two cores of an AMD
EPYC, one row: in bfloat16 oneDNN reads W at 25 GB/s and torch's own loop at 45; in float32 MKL reads it at 18 GB/s, and
as W x^T, for two rows or more, at 40.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from luthier.engine.instance import replace_forward

ROWS = (1, 4, 16, 128)
"""What is measured, each for products of up to so many rows."""
WORTH_IT = 1.2  # so many times as fast as torch's usual way
TIMED_RUNS = 3  # the best counts, as others may use the machine
TIMED_BYTES = 1 << 26  # of weights, one after the other: more than most caches hold
SMALLEST = 1 << 18
"""Values of a weight whose products take long enough to be worth it."""

Way = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x [R, in], weight [out, in], bias [out] or None → [R, out]."""


def own_loop(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's own product, which oneDNN otherwise stands in for.

    The switch is the whole process's: what another thread multiplies at that moment is right as well, and slower."""
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        return linear(x, weight, bias)
    finally:
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]


def columns(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x^T. A lone row is taken twice: MKL is slow where a matrix meets a vector."""
    wide = x if len(x) > 1 else torch.cat((x, x))
    y = (weight @ wide.T).T[: len(x)].contiguous()
    return y if bias is None else y.add_(bias)


class Products:
    """The products of one model instance.

    Attributes:
        ways: (rows, way), ascending: the way for up to so many rows. For more, torch's usual one.
    """

    def __init__(self, model: nn.Module) -> None:
        weights = _representative([layer.weight for layer in _linears(model)])
        self.ways = _measure(weights) if weights and torch.backends.mkldnn.enabled else []

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for rows, way in self.ways:
            if len(x) <= rows:
                return way(x, weight, bias)
        return linear(x, weight, bias)

    def install(self, model: nn.Module) -> None:
        """Gives the linear layers of the model these products."""
        if self.ways:
            for layer in _linears(model):
                replace_forward(layer, partial(self._forward, layer))

    def _forward(self, layer: nn.Linear, own: object, x: Tensor) -> Tensor:
        return self(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias).view(*x.shape[:-1], -1)


def _linears(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if type(module) is nn.Linear)


def _representative(weights: list[Tensor]) -> list[Tensor]:
    """Some of the shape that most have, of such the largest; none where products are small or not on a CPU."""
    counts = Counter(weight.shape for weight in weights)
    shape = max(counts, key=lambda shape: (counts[shape], shape.numel()), default=torch.Size())
    if shape.numel() < SMALLEST:
        return []
    alike = [weight for weight in weights if weight.shape == shape and weight.device.type == "cpu"]
    return alike[: 1 + TIMED_BYTES // (shape.numel() * weights[0].itemsize)]


def _measure(weights: list[Tensor]) -> list[tuple[int, Way]]:
    found: list[tuple[int, Way]] = []
    left: list[Way] = [own_loop, columns]
    for rows in ROWS:
        x = weights[0].new_ones(rows, weights[0].shape[1])
        some = weights[: 1 + 4 * len(weights) // rows]  # the more rows, the less it matters where weights come from
        usual = _seconds(linear, x, some)
        seconds = {way: _seconds(way, x, some) for way in left}
        way = min((linear, *left), key=lambda way: seconds.get(way, usual / WORTH_IT))
        found.append((rows, way))
        left = [way for way in left if seconds[way] < WORTH_IT * usual]  # more rows would only make it worse
    while found and found[-1][1] is linear:
        found.pop()
    return found


def _seconds(way: Way, x: Tensor, weights: list[Tensor]) -> float:
    best = float("inf")
    for _ in range(TIMED_RUNS):
        begin = time.perf_counter()
        for weight in weights:
            way(x, weight, None)
        best = min(best, time.perf_counter() - begin)
    return best
