"""How fast this machine is at this model: a few of its layers rehearsed on the run's own micro-batches.

Layers of one kind take the same time, so the whole model is its layers' time times their number, and what lies outside
of them. The first layer of a model computes no gradient of its input, so it is left out of the count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from luthier.data.render import IGNORE, Example
from luthier.engine import graph_trial
from luthier.engine.engines import Engine, as_stock
from luthier.engine.graphs import CannotCapture
from luthier.engine.instance import evaluating, in_mode
from luthier.hardware.threads import with_threads
from luthier.inference.adapters import Adapters
from luthier.inference.decode import Running
from luthier.inference.generate import greedy
from luthier.inference.pick import pick_decoder
from luthier.training import activations
from luthier.training.forecast.rates import Rates, Timed, file_of, key, products_rate, write
from luthier.training.forecast.sketch import period, shortened
from luthier.training.forecast.workload import Piece, Workload

# For each micro-batch: how long and how often at most, and how often at least, after a warm-up: the middle of three is
# not the one that another program disturbed.
SECONDS, MOST, LEAST = 0.4, 12, 3
NEW_TOKENS = 2, 8  # of the answers that are timed: their difference knows nothing of the prompt


def short_model(config: Any, *, dtype: str, device: str, remote_code: bool = False) -> Any:
    """The model's first layers with arbitrary weights: as many as there are kinds of them, and one before."""
    from transformers import AutoModelForCausalLM

    short = shortened(config, range(timed_layers(config) + 1))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(short, dtype=getattr(torch, dtype), trust_remote_code=remote_code)
    model = model.to_empty(device=device).requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.05, 0.05)
        for buffer in model.buffers():
            buffer.zero_()
    return model


def timed_layers(config: Any) -> int:
    layers: int = config.get_text_config().num_hidden_layers
    return min(period(config), layers - 1)


def layer_seconds(model: Any, engine: Engine, batch: Sequence[Example], threads: Sequence[int]) -> dict[int, float]:
    """Of one layer of a micro-batch, forward and backward, with each of these numbers of CPU threads.

    What was measured once is kept: it is compared, and all of it was measured in the same minute. Random numbers and
    gradients are left as they were.
    """
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    facts = {"device": model.device.type, "dtype": str(model.dtype), "learned": learned, "of": list(threads)}
    file = file_of(key(model.config, [batch], engine, **facts))
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(zip(threads, map(float, json.loads(file.read_bytes())), strict=True))
    found: dict[int, float] = {}
    short = [_with_one_label(example) for example in batch]
    with torch.random.fork_rng(), _first_layers(model, timed_layers(model.config) + 1):
        clock = _Clock(model, model.device.type, min)  # what else runs on the machine can only add
        for count in [*threads, *threads]:  # twice, as a machine's speed drifts
            with with_threads(count):
                timed = _step(model, engine, short, clock)
            found[count] = min(timed.forward + timed.backward, found.get(count, math.inf))
    write(file, list(found.values()))
    return found


def _with_one_label(example: Example) -> Example:
    """Its last one: layers compute as many tokens, and a head, which can take longer than they, hardly any."""
    last = max((place for place, label in enumerate(example.labels) if label != IGNORE), default=0)
    labels = [label if place == last else IGNORE for place, label in enumerate(example.labels)]
    return dataclasses.replace(example, labels=labels)


def measure(model: Any, engine: Engine, workload: Workload, dtype: str, *, captured: bool) -> Rates:
    """Times the first layers of this model, which may be a whole one, with its adapter and engine.

    Random numbers and gradients are left as they were.

    Args:
        captured: whether micro-batches may be CUDA graphs: each is, then, where that is faster.
    """
    device, layers = model.device.type, len(activations.decoder_layers(model))
    capture = 0.0
    with torch.random.fork_rng(), _first_layers(model, timed_layers(model.config) + 1):
        clock = _Clock(model, device)
        steps, colder = [], []
        with with_threads(max(1, torch.get_num_threads() // workload.processes)):  # those of each process
            for batch in workload.samples:
                steps.append(_step(model, engine, batch, clock))
                colder.append(clock.colder)
            if captured:
                steps, capture = _as_graphs(model, engine, workload.samples, steps, layers)
            if capture:
                colder.append(0.0)  # a graph writes no kernels when it runs
            middle = workload.samples[len(workload.samples) // 2]
            evaluation = _heldout(model, engine, middle, clock)
        heldout = evaluation if workload.processes == 1 else _heldout(model, engine, middle, clock)
        update = _update(model)
        new_token, outside = _answers(model, clock, max(1, workload.questions))
    products = products_rate(device, dtype)
    return Rates(steps, evaluation, heldout, new_token, outside, update, min(colder), products, capture)


class _Clock:
    """When each layer begins and ends, forward and backward. The first one is not looked at.

    colder: seconds that the first repetition of the latest work took more than the others.

    Args:
        typical: which of the repetitions counts.
    """

    def __init__(
        self, model: Any, device: str, typical: Callable[[Sequence[float]], float] = statistics.median
    ) -> None:
        self.typical = typical
        self.layers, self.device = activations.decoder_layers(model), device
        self.forward: list[float] = []
        self.marks: list[float] = []
        self.colder = 0.0

    def now(self) -> float:
        if self.device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        began: list[float] = []

        def enter(*_: Any) -> None:
            began.append(self.now())

        def leave(module: Any, inputs: Any, output: Any) -> None:
            self.forward.append(self.now() - began.pop())
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda gradient: self.marks.append(self.now()))

        hooks = [h for x in self.layers for h in (x.register_forward_pre_hook(enter), x.register_forward_hook(leave))]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def time(self, work: Callable[[], object]) -> tuple[float, float, float]:
        """Seconds of a layer forward, backward, and of the whole: what is typical of some repetitions."""
        found: list[tuple[float, float, float]] = []
        first = self.now()
        while len(found) <= LEAST or (self.now() - first < SECONDS and len(found) <= MOST):
            self.forward, self.marks = [], []
            began = self.now()
            with self.watching():
                work()
            whole = self.now() - began
            own = self.forward[1 : len(self.layers)] or self.forward
            backward = (self.marks[-1] - self.marks[0]) / (len(self.marks) - 1) if len(self.marks) > 1 else 0.0
            found.append((statistics.fmean(own), backward, whole))
        forward, backward, whole = (self.typical(each) for each in zip(*found[1:], strict=True))
        self.colder = max(0.0, found[0][2] - whole)
        return forward, backward, whole


def _step(model: Any, engine: Engine, batch: Sequence[Example], clock: _Clock) -> Timed:
    def work() -> None:
        engine.loss_sum(model, batch).backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    with in_mode(model, training=True):
        forward, backward, whole = clock.time(work)
    layers = len(clock.layers)
    if layers == 1:
        backward = whole / 2 - forward
    piece = Piece.of(batch, engine)
    return Timed(piece.tokens, piece.labels, forward, backward, max(0.0, whole - layers * (forward + backward)))


def _as_graphs(
    model: Any, engine: Engine, batches: Sequence[Sequence[Example]], without: list[Timed], layers: int
) -> tuple[list[Timed], float]:
    """What micro-batches take as CUDA graphs, and the capture of one of all `layers`; as without, and 0, if not faster.

    No layer of a graph can be timed by itself: it is what a model with more layers takes longer.
    """
    count = len(activations.decoder_layers(model))
    if count < 2:
        return without, 0.0
    found = []
    capture = 0.0
    try:
        for batch, eager in zip(batches, without, strict=True):
            several, of_several = graph_trial.time_one(model, engine, batch)
            with _first_layers(model, 1):
                one, of_one = graph_trial.time_one(model, engine, batch)
            layer, of_layer = (max(0.0, more / (count - 1)) for more in (several - one, of_several - of_one))
            found.append(Timed(eager.tokens, eager.labels, 0.0, layer, max(0.0, one - layer)))
            capture = max(capture, of_one + (layers - 1) * of_layer)
    except CannotCapture:
        return without, 0.0
    faster = sum(map(_layer_seconds, found)) < sum(map(_layer_seconds, without))
    return (found, capture) if faster else (without, 0.0)


def _layer_seconds(timed: Timed) -> float:
    return timed.forward + timed.backward


def _heldout(model: Any, engine: Engine, batch: Sequence[Example], clock: _Clock) -> Timed:
    with evaluating(model), torch.no_grad():
        forward, _, whole = clock.time(lambda: engine.loss_sum(model, batch))
    piece = Piece.of(batch, engine)
    return Timed(piece.tokens, piece.labels, forward, 0.0, max(0.0, whole - len(clock.layers) * forward))


def _update(model: Any) -> float:
    """Of gradient clipping and AdamW, for one layer's adapter."""
    learned = [p.detach().clone().requires_grad_() for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.0)
    seconds = []
    for _ in range(3):
        for parameter in learned:
            parameter.grad = torch.zeros_like(parameter)
        began = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return min(seconds) / len(activations.decoder_layers(model) or [model])


def _answers(model: Any, clock: _Clock, questions: int) -> tuple[float, float]:
    """Seconds of a layer, and of all else, for one more token of each answer of the tuned and the base model."""
    few, many = NEW_TOKENS
    adapter = model.active_adapter
    where = [(parameter, parameter.data) for parameter in model.parameters()]  # a decoder copies what it reads
    try:
        with as_stock(model), evaluating(model), torch.no_grad():
            decoder = pick_decoder(Adapters(model), kept_bytes=0).value

            def answer(tokens: int) -> None:
                requests = [Running([1] * 8, key) for key in (adapter, None) for _ in range(questions)]
                greedy(decoder, requests, frozenset(), tokens)

            _, _, shorter = clock.time(partial(answer, few))
            _, _, longer = clock.time(partial(answer, many))
    finally:
        for parameter, data in where:
            parameter.data = data
    layer = statistics.median(clock.forward[len(clock.layers) :])  # without the prompt's
    return layer, max(0.0, (longer - shorter) / (many - few) - len(clock.layers) * layer)


@contextlib.contextmanager
def _first_layers(model: Any, count: int) -> Iterator[None]:
    """The model with its first layers alone."""
    layers = activations.decoder_layers(model)
    holders = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    holder = next((each for each in holders if list(each) == layers), None)
    if holder is None or count >= len(layers):
        yield
        return
    config, whole = model.config.get_text_config(), dict(holder._modules)
    before = config.num_hidden_layers
    for name in list(whole)[count:]:
        del holder._modules[name]
    config.num_hidden_layers = count
    try:
        yield
    finally:
        holder._modules.clear()
        holder._modules.update(whole)
        config.num_hidden_layers = before
