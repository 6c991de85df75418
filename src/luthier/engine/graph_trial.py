"""A micro-batch as a CUDA graph, tried: whether it is faster and its gradient the same, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.data.render import Example
from luthier.engine.engines import Engine
from luthier.engine.graphs import CannotCapture, Graphs, first_line, flat
from luthier.engine.instance import relative_error

TIMED_RUNS = 5
LARGEST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""Of all gradients together, against the same micro-batch without a graph. Other sizes are rounded otherwise:
bfloat16 itself is off by 4 to 5 % on SmolLM2, and in the shape of Qwen3-8B the two differed by as much."""


def try_out(model: Any, engine: Engine, examples: Sequence[Example], *, drops: bool) -> tuple[float, float]:
    """Seconds of a micro-batch's forward and backward, without a graph and with one.

    `drops`: whether something is dropped, so that no two gradients are the same.

    Raises CannotCapture where it cannot be captured, or the graph's gradient is another.
    """

    def eager() -> None:
        torch.autograd.backward(engine.loss_sum(model, examples))

    def graph() -> None:
        graphs.backward(examples, 1.0)

    model.train()
    try:
        expected = _gradient(model, eager)
        without = _seconds(eager)
        model.zero_grad()
        torch.cuda.empty_cache()
        graphs = Graphs(model, engine)
        graphs.capture(examples)
        off = graphs.error() if drops else relative_error(_gradient(model, graph), expected)
        with_graph = _seconds(graph)
    except RuntimeError as error:  # what cannot be captured says so in words of its own
        raise CannotCapture(f"it cannot be captured ({first_line(error)})") from error
    finally:
        model.zero_grad()
        torch.cuda.empty_cache()
    if not off <= LARGEST_ERROR[model.dtype]:
        raise CannotCapture(f"its gradient is off by {off:.1e}")
    return without, with_graph


def time_one(model: Any, engine: Engine, examples: Sequence[Example]) -> tuple[float, float]:
    """Seconds of a micro-batch as a graph, and of its capture. Raises CannotCapture."""
    try:
        graphs = Graphs(model, engine)
        graphs.capture(examples)  # what compilers and libraries do once
        began = time.perf_counter()
        graphs.capture(examples)
        captured = time.perf_counter() - began
        return _seconds(lambda: graphs.backward(examples, 1.0)), captured
    except RuntimeError as error:
        raise CannotCapture(first_line(error)) from error
    finally:
        model.zero_grad()
        torch.cuda.empty_cache()


def _gradient(model: Any, work: Callable[[], None]) -> Tensor:
    model.zero_grad()
    work()
    return flat(p.grad for p in model.parameters())


def _seconds(work: Callable[[], object]) -> float:
    """Of one of some runs, each queued while the device computes the one before it, as in a training."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(TIMED_RUNS):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMED_RUNS
