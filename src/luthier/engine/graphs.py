"""Forward and backward of a micro-batch as one CUDA graph (NVIDIA, and AMD by the same name).

Of a small model a fast GPU computes a layer in less time than the processor takes to start its kernels, one after the
other. A graph starts those of a whole micro-batch at once. It repeats what was captured: the same kernels on the same
addresses, with the same shapes. So a micro-batch is filled up to one of few shapes, with a sequence that has no label,
and its indices are copied to where the graph reads them; all that depends on them is computed within it.

What may be captured, and what must not be: docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from luthier.data.render import Example
from luthier.engine.engines import Engine, FlatEngine
from luthier.engine.flash import CALLS, Call, parts_of
from luthier.engine.instance import relative_error
from luthier.engine.layout import FlatBatch, Layout, Segment, flatten

TILE = 128  # of FlexAttention: imported, it would bring PyTorch's compiler with it
MOST = 32
"""Graphs kept; micro-batches of other shapes are computed without one."""
TIMED_RUNS = 3
LARGEST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Of all gradients together, against the same micro-batch without a graph: a GPU's sums differ from run to run."""


class Shape(NamedTuple):
    """What a graph fixes.

    calls: of flash attention, each with so many `parts` of queries and keys; `longest`: tokens of a segment at most.
    """

    tokens: int
    labels: int
    calls: int
    parts: int
    longest: int


def shape_of(batch: FlatBatch) -> Shape:
    """The smallest shape that takes this batch. Of tokens and labels it wastes an eighth at most."""
    tokens = rounded_up(batch.layout.num_tokens)
    own, *levels = parts_of(_filled_up(batch.layout, tokens))
    parts = max(len(each.keys) - 1 for each in (own, *levels))
    longest = min(tokens, _power_of_two(own.longest))
    return Shape(tokens, rounded_up(len(batch.targets)), 1 + len(levels), _power_of_two(parts), longest)


def _filled_up(layout: Layout, tokens: int) -> tuple[Segment, ...]:
    """With a sequence of its own up to so many tokens."""
    filler = Segment(layout.num_tokens, tokens, tokens, 0)
    return (*layout.segments, filler) if filler.start < filler.end else layout.segments


def rounded_up(count: int) -> int:
    """To a multiple of a tile, and of a sixteenth of the next power of two: 3,477 → 3,584, 5,000 → 5,120."""
    step = max(TILE, _power_of_two(count) // 16)
    return max(1, -(-count // step)) * step


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


class FixedLayout(Layout):
    """The layout of whatever lies in a graph's inputs: their sizes are the shape's, whatever it holds."""

    def __init__(self, shape: Shape, until: Tensor, positions: Tensor, calls: Tensor) -> None:
        """`calls`: [calls, 2, parts + 1], the ends of queries and of keys."""
        super().__init__((), until.device)
        vars(self).update(shape=shape, until=until, positions=positions)
        (queries, keys), *levels = calls.int()
        own = Call(queries, keys, shape.longest, causal=True)
        made = [own, *(Call(queries, keys, shape.tokens, causal=False) for queries, keys in levels)]
        self.once(CALLS, lambda: made)

    shape: Shape

    @property
    def num_tokens(self) -> int:
        return self.shape.tokens

    @property
    def shares(self) -> bool:
        return self.shape.calls > 1

    @property
    def longest(self) -> int:
        return self.shape.tokens  # at most


class _Inputs:
    """What a graph reads: one piece of the device's memory, filled by one copy for each micro-batch."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        tokens, labels = shape.tokens, shape.labels
        self._sizes = [tokens, tokens, tokens, labels, labels, shape.calls * 2 * (shape.parts + 1), 1]
        self._indices = torch.zeros(sum(self._sizes), dtype=torch.long, device=device)
        self._weight = torch.zeros((), device=device)

    def batch(self) -> tuple[FlatBatch, Tensor]:
        """The micro-batch, and what each of its losses counts; with a layout that has made nothing yet."""
        ids, positions, until, predict_at, targets, calls, labels = torch.split(self._indices, self._sizes)
        layout = FixedLayout(self.shape, until, positions, calls.view(self.shape.calls, 2, -1))
        place = torch.arange(len(targets), device=targets.device)
        weights = torch.where(place < labels, self._weight, 0)
        whose = targets.new_zeros(targets.shape)  # it does not matter to the sum
        return FlatBatch(ids[None], positions[None], predict_at, targets, whose, layout), weights

    def load(self, batch: FlatBatch, weight: float) -> None:
        """`batch`: on the host, and of no larger shape. What is not used of a call are parts without tokens."""
        tokens, labels, calls, parts, _ = self.shape
        layout = Layout(_filled_up(batch.layout, tokens))
        ends = [side for each in parts_of(layout.segments) for side in (each.queries, each.keys)]
        assert len(ends) == 2 * calls
        unused = labels - len(batch.targets)
        indices = torch.cat(
            [
                pad(batch.input_ids[0], (0, tokens - batch.layout.num_tokens)),
                layout.positions,
                layout.until,
                pad(batch.predict_at, (0, unused)),
                pad(batch.targets, (0, unused)),
                *(torch.tensor(side + [tokens] * (parts + 1 - len(side))) for side in ends),
                torch.tensor([len(batch.targets)]),
            ]
        )
        self._indices.copy_(indices.pin_memory() if self._indices.is_cuda else indices, non_blocking=True)
        self._weight.fill_(weight)


@dataclass(frozen=True)
class _Captured:
    graph: Any
    inputs: _Inputs
    loss: Tensor


class Graphs:
    """The micro-batches of one model with a flat engine, a graph for each shape, captured when it is first met."""

    def __init__(self, model: Any, engine: Engine) -> None:
        assert isinstance(engine, FlatEngine)  # as `pick_cuda_graphs` sees to
        self.model, self.engine = model, engine
        self._learned = [p for p in model.parameters() if p.requires_grad]
        self._sums = [torch.zeros_like(p) for p in self._learned]
        self._captured: dict[Shape, _Captured] = {}
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def backward(self, examples: Sequence[Example], weight: float) -> Tensor | None:
        """Adds the gradient of `weight` times the sum of the examples' losses to that of the parameters.

        Returns that loss, a scalar; None, and nothing is done, where there are too many shapes for another graph.
        """
        batch = flatten(examples, share=self.engine.share)
        shape = shape_of(batch)
        if shape not in self._captured:
            if len(self._captured) == MOST:
                return None
            self._captured[shape] = self._capture(shape, batch)
        captured = self._captured[shape]
        captured.inputs.load(batch, weight)
        self._take_gradients()
        captured.graph.replay()
        return captured.loss.clone()

    def _take_gradients(self) -> None:
        """Makes the memory that graphs add to the gradients, with what these are."""
        if self._learned[0].grad is self._sums[0]:
            return
        torch._foreach_zero_(self._sums)
        for parameter, total in zip(self._learned, self._sums, strict=True):
            if parameter.grad is not None:  # of a micro-batch without a graph
                total.copy_(parameter.grad)
            parameter.grad = total

    def _capture(self, shape: Shape, batch: FlatBatch) -> _Captured:
        inputs = _Inputs(shape, self._sums[0].device)
        inputs.load(batch, 1.0)
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._compute(inputs)  # compilers and libraries do now what they do once
            with no_waiting():  # and what cannot be captured is found before that is tried
                self._compute(inputs)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
            loss, gradients = self._compute(inputs)
            sums = [total for total, gradient in zip(self._sums, gradients, strict=True) if gradient is not None]
            torch._foreach_add_(sums, [gradient for gradient in gradients if gradient is not None])
        return _Captured(graph, inputs, loss)

    def _compute(self, inputs: _Inputs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        batch, weights = inputs.batch()
        loss = (self.engine.token_losses(self.model, batch) * weights).sum()
        return loss.detach(), torch.autograd.grad(loss, self._learned, allow_unused=True)


@contextmanager
def no_waiting() -> Iterator[None]:
    """What makes the processor wait for the device raises RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class CannotCapture(Exception):
    """Why a micro-batch cannot be a graph."""


def try_out(model: Any, engine: Engine, examples: Sequence[Example]) -> tuple[float, float]:
    """Seconds of a micro-batch's forward and backward, without a graph and with one.

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
        off = relative_error(_gradient(model, graph), expected)
        with_graph = _seconds(graph)
    except (RuntimeError, NotImplementedError) as error:  # what cannot be captured says so in words of its own
        raise CannotCapture(f"it cannot be captured ({str(error).strip().partition(chr(10))[0]})") from error
    finally:
        model.zero_grad()
        torch.cuda.empty_cache()
    if not off <= LARGEST_ERROR[model.dtype]:
        raise CannotCapture(f"its gradient is off by {off:.1e}")
    return without, with_graph


def _gradient(model: Any, work: Callable[[], None]) -> Tensor:
    model.zero_grad()
    work()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _seconds(work: Callable[[], None]) -> float:
    """The fastest of some runs, after one that does not count."""
    work()
    found = []
    for _ in range(TIMED_RUNS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found)
