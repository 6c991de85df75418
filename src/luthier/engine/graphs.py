"""Forward and backward of a micro-batch as one CUDA graph (NVIDIA, and AMD by the same name).

Of a small model a fast GPU computes a layer in less time than the processor takes to start its kernels, one after the
other. A graph starts those of a whole micro-batch at once. It repeats what was captured: the same kernels on the same
addresses, with the same shapes. So a micro-batch is filled up to one of few shapes, with a sequence that has no label,
and its indices are copied to where the graph reads them; all that depends on them is computed within it.

What may be captured, and what must not be: docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from luthier import console
from luthier.data.render import Example
from luthier.engine.engines import Engine, FlatEngine
from luthier.engine.flash import ASKED, Sequences, asked_of
from luthier.engine.instance import relative_error
from luthier.engine.layout import FlatBatch, Layout, flatten

TILE = 128  # of FlexAttention: imported, it would bring PyTorch's compiler with it
MOST = 32
"""Graphs kept; micro-batches of other shapes are computed without one."""
WASTE = 1.25
ROOM = 1.2
"""Tokens of a graph for each of a micro-batch at most, and how much more of all else a graph takes than the micro-batch
it is captured for: to capture one costs as much as dozens of its steps."""


class Shape(NamedTuple):
    """Sizes of a micro-batch, or of what takes many.

    keys: that are picked for attention; 0 where nothing is shared. sequences: of queries and keys.
    """

    tokens: int
    labels: int
    keys: int
    sequences: int
    longest: int

    @classmethod
    def of(cls, batch: FlatBatch) -> Shape:
        asked = asked_of(batch.layout)
        keys = 0 if asked.places is None else len(asked.places)
        return cls(batch.layout.num_tokens, len(batch.targets), keys, len(asked.queries) - 1, asked.longest)

    def with_room(self) -> Shape:
        """To be captured for micro-batches of this shape and others like it."""
        tokens, labels = rounded_up(self.tokens), rounded_up(int(ROOM * self.labels))
        keys = self.keys and rounded_up(int(ROOM * self.keys) + tokens - self.tokens)
        longest = 2 << max(0, self.longest - 1).bit_length()
        room = Shape(tokens, labels, keys, 0, longest)
        return room._replace(sequences=int(ROOM * self.sequences) + len(room.fill_up(self)) + 8)

    def takes(self, batch: Shape) -> bool:
        """Whether it fits, and does not waste much."""
        if bool(self.keys) != bool(batch.keys) or any(mine < its for mine, its in zip(self, batch, strict=True)):
            return False
        if self.keys and batch.keys + self.tokens - batch.tokens > self.keys:  # what fills up the tokens has keys, too
            return False
        wasteful = self.tokens > WASTE * batch.tokens + TILE or self.labels > 2 * batch.labels + TILE
        return not wasteful and batch.sequences + len(self.fill_up(batch)) <= self.sequences

    def fill_up(self, batch: Shape) -> list[tuple[int, int]]:
        """Queries and keys of sequences for what a batch leaves of the tokens and keys, none too long."""
        tokens = _cut(self.tokens - batch.tokens, self.longest)
        unused = self.keys - batch.keys - (self.tokens - batch.tokens) if self.keys else 0
        return [*((size, size) for size in tokens), *((0, size) for size in _cut(unused, self.longest))]


def _cut(size: int, most: int) -> list[int]:
    """7, 3 → [3, 3, 1]"""
    return [min(most, size - start) for start in range(0, size, most)]


def rounded_up(count: int) -> int:
    """To a multiple of a tile, and of a sixteenth of the next power of two: 3,477 → 3,584, 5,000 → 5,120."""
    step = max(TILE, (1 << max(0, count - 1).bit_length()) // 16)
    return max(1, -(-count // step)) * step


class FixedLayout(Layout):
    """The layout of whatever lies in a graph's inputs: their sizes are the shape's, whatever it holds."""

    def __init__(self, shape: Shape, until: Tensor, positions: Tensor, asked: Sequences) -> None:
        super().__init__((), until.device)
        vars(self).update(shape=shape, until=until, positions=positions)
        self.once(ASKED, lambda: asked)

    shape: Shape

    @property
    def num_tokens(self) -> int:
        return self.shape.tokens

    @property
    def longest(self) -> int:
        return self.shape.longest  # at most


class _Inputs:
    """What a graph reads: one piece of the device's memory, filled by one copy for each micro-batch."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        tokens, labels, keys, count, _ = shape
        self._sizes = [tokens, tokens, tokens, labels, labels, keys, count + 1, count + 1, 1]
        self._indices = torch.zeros(sum(self._sizes), dtype=torch.long, device=device)
        self._weight = torch.zeros((), device=device)

    def batch(self) -> tuple[FlatBatch, Tensor]:
        """The micro-batch, and what each of its losses counts; with a layout that has made nothing yet."""
        parts = torch.split(self._indices, self._sizes)
        ids, positions, until, predict_at, targets, places, query_ends, key_ends, labels = parts
        picked = places if self.shape.keys else None
        asked = Sequences(query_ends.int(), key_ends.int(), picked, self.shape.longest)
        layout = FixedLayout(self.shape, until, positions, asked)
        weights = torch.where(torch.arange(len(targets), device=targets.device) < labels, self._weight, 0)
        whose = targets.new_zeros(targets.shape)  # it does not matter to the sum
        return FlatBatch(ids[None], positions[None], predict_at, targets, whose, layout), weights

    def load(self, batch: FlatBatch, weight: float) -> None:
        """`batch`: on the host, and one that the shape takes. What it leaves of that are sequences of their own."""
        asked = asked_of(batch.layout)
        places = torch.zeros(0, dtype=torch.long) if asked.places is None else asked.places
        mine, its = self.shape, Shape.of(batch)
        rest = mine.fill_up(its)
        rest += [(0, 0)] * (mine.sequences - its.sequences - len(rest))
        more = torch.tensor(rest, dtype=torch.int32).view(-1, 2).cumsum(0, dtype=torch.int32)
        own = torch.arange(its.tokens, mine.tokens)
        keys = torch.cat([places, own]) if mine.keys else places
        layout, unused = batch.layout, mine.labels - its.labels
        indices = torch.cat(
            [
                pad(batch.input_ids[0], (0, len(own))),
                torch.cat([layout.positions, own - its.tokens]),
                pad(layout.until, (0, len(own)), value=mine.tokens),
                pad(batch.predict_at, (0, unused)),
                pad(batch.targets, (0, unused)),
                pad(keys, (0, mine.keys - len(keys))),
                torch.cat([asked.queries, asked.queries[-1] + more[:, 0]]),
                torch.cat([asked.keys, asked.keys[-1] + more[:, 1]]),
                torch.tensor([its.labels]),
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
        self._captured: list[_Captured] = []
        self._most = MOST
        self._filled = 0
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def backward(self, examples: Sequence[Example], weight: float) -> Tensor | None:
        """Adds the gradient of `weight` times the sum of the examples' losses to that of the parameters.

        Returns that loss, a scalar; None, and nothing is done, where there are too many shapes for another graph.
        """
        batch = flatten(examples, share=self.engine.share)
        captured = self._captured_for(batch)
        if captured is None:
            return None
        captured.inputs.load(batch, weight)
        self._filled += captured.inputs.shape.tokens - batch.layout.num_tokens
        self._take_gradients()
        captured.graph.replay()
        return captured.loss.clone()

    def take_filled(self) -> int:
        """Tokens that micro-batches were filled up with since this was asked last."""
        filled, self._filled = self._filled, 0
        return filled

    def capture(self, examples: Sequence[Example]) -> None:
        """A graph for these examples and others like them. Raises RuntimeError where there cannot be one."""
        self._add(flatten(examples, share=self.engine.share))

    def error(self) -> float:
        """How far the gradient of the latest graph is from that of what it captured, computed without it.

        With the same random numbers in both. Raises CannotCapture where it draws the same ones each time.
        """
        inputs, replay = self._captured[-1].inputs, self._captured[-1].graph.replay

        def replayed(seed: int) -> Tensor:
            torch._foreach_zero_(self._sums)
            torch.manual_seed(seed)
            replay()
            return flat(self._sums)

        with torch.random.fork_rng():
            found, other = replayed(0), replayed(1)
            torch.manual_seed(0)
            _, gradients = self._compute(inputs)
        if torch.equal(found, other):
            raise CannotCapture("what it drops is the same each time")
        return relative_error(found, flat(gradients))

    def _captured_for(self, batch: FlatBatch) -> _Captured | None:
        shape = Shape.of(batch)
        fitting = [each for each in self._captured if each.inputs.shape.takes(shape)]
        if fitting:
            return min(fitting, key=lambda each: each.inputs.shape)
        if len(self._captured) >= self._most:
            return None
        try:
            return self._add(batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._most = 0
            console.warn(f"no more CUDA graphs, so some steps take longer: {first_line(error)}")
            return None

    def _add(self, batch: FlatBatch) -> _Captured:
        inputs = _Inputs(Shape.of(batch).with_room(), self._sums[0].device)
        inputs.load(batch, 1.0)
        if self._captured:  # what kernels are written for seldom differs: all sizes are multiples of a tile
            with contextlib.suppress(RuntimeError):
                return self._keep(inputs)
        self._warm_up(inputs)
        return self._keep(inputs)

    def _keep(self, inputs: _Inputs) -> _Captured:
        with random_numbers_survive():
            self._captured.append(self._capture(inputs))
        return self._captured[-1]

    def _warm_up(self, inputs: _Inputs) -> None:
        """Compilers and libraries do now what they do once, and must not do in a capture."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._compute(inputs)
            if not self._captured:
                with no_waiting():  # what cannot be captured is found before that is tried
                    self._compute(inputs)
        current.wait_stream(self._stream)

    def _take_gradients(self) -> None:
        """Makes the memory that graphs add to the gradients, with what these are."""
        if self._learned[0].grad is self._sums[0]:
            return
        torch._foreach_zero_(self._sums)
        for parameter, total in zip(self._learned, self._sums, strict=True):
            if parameter.grad is not None:  # of a micro-batch without a graph
                total.copy_(parameter.grad)
            parameter.grad = total

    def _capture(self, inputs: _Inputs) -> _Captured:
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


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """What makes the processor wait for the device raises RuntimeError."""
    _on_waiting("error")
    try:
        yield
    finally:
        _on_waiting("default")


def _on_waiting(mode: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")  # is new, says torch, and misses some
        torch.cuda.set_sync_debug_mode(mode)


class CannotCapture(Exception):
    """Why a micro-batch cannot be a graph."""


def captures(sizes: Iterable[int]) -> int:
    """How many graphs micro-batches of so many tokens take, as far as tokens decide it.

    900, 1,000, 1,010, 3,000 → 2
    """
    found: list[int] = []
    for tokens in sizes:
        if len(found) < MOST and not any(tokens <= each <= WASTE * tokens + TILE for each in found):
            found.append(rounded_up(tokens))
    return len(found)


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextlib.contextmanager
def random_numbers_survive() -> Iterator[None]:
    """A capture that fails leaves the device's generator in it, and whatever draws from it later fails, too."""
    state = torch.cuda.get_rng_state()
    try:
        yield
    except BaseException:
        fresh = torch.Generator(device="cuda")
        fresh.set_state(state)
        torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh.graphsafe_get_state())
        raise


def flat(gradients: Iterable[Tensor | None]) -> Tensor:
    """A copy, in one piece."""
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
