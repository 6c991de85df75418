"""`luthier plan`: what a recipe will take, before anything is loaded; and what a job will, before its first step."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch

from luthier import console
from luthier.choice import Choice
from luthier.data.prepare import Prepared, pick_max_length
from luthier.data.preview import lengths_of
from luthier.data.render import Example
from luthier.data.steps import Steps
from luthier.engine.choose import has_dropout, pick_engine
from luthier.engine.engines import Engine
from luthier.hardware.memory import available_bytes, peak_bytes, release, resident_bytes
from luthier.hardware.probe import cpu_name
from luthier.model import adapters
from luthier.recipe.schema import Recipe
from luthier.report import events
from luthier.training import activations, job, plan, room, takeover
from luthier.training.capture import may_capture
from luthier.training.cut import Cut
from luthier.training.forecast import calibration, memory, rates, rehearsal, subject
from luthier.training.forecast.memory import Memory
from luthier.training.forecast.rates import Rates
from luthier.training.forecast.seconds import READ_PER_SECOND, Seconds, seconds
from luthier.training.forecast.sketch import Sketch, sizes_of
from luthier.training.forecast.workload import Piece, Workload, imagined, workload
from luthier.training.processes import Machine, pick_cpu_processes

Measure = Callable[[Workload, int], Rates | None]
"""Rates for a run's workload, of which so many layers are recomputed."""


@dataclass(frozen=True)
class Room:
    """Bytes that a run may take: of the device's memory, and of the host's."""

    device: int
    host: int


@dataclass(frozen=True)
class Plan:
    """What a run takes. `seconds` and `work` are None where no rows are at hand."""

    model: str
    device: str
    dtype: str
    weights: int
    """How many, the adapter's with them."""
    layers: int
    recomputed: int
    tokens: int
    """Of the largest micro-batch."""
    memory: Memory
    room: Room
    seconds: Seconds | None = None
    work: Workload | None = None
    rates: Rates | None = None
    learned_from: int = 0
    """Earlier runs that `seconds.unplanned` is of."""
    choices: dict[str, Choice[Any]] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.room.device and sum(self.memory.host.values()) <= self.room.host

    @property
    def rehearses(self) -> bool:
        """Whether the run computes its largest micro-batches once before the first step, to see that memory holds them.

        It takes seconds on a CPU, where they are saved if twice as much is free as the run takes.
        """
        return self.device != "cpu" or 2 * self.memory.peak > self.room.device

    def to_json(self) -> dict[str, Any]:
        """As the `plan` event of a run and `luthier plan --json` have it. Bytes and seconds."""
        work = self.work
        return {
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "weights": self.weights,
            "layers": self.layers,
            "recomputed_layers": self.recomputed,
            "micro_batch_tokens": self.tokens,
            "memory": self.memory.to_json(),
            "room": vars(self.room),
            "fits": self.fits,
            "rehearses": self.rehearses,
            "seconds": None if self.seconds is None else self.seconds.to_json(),
            "tokens": None if work is None else tokens_of(work),
            "products_per_second": None if self.rates is None else self.rates.products,
        }


def tokens_of(work: Workload) -> dict[str, int]:
    """Of an epoch and of the whole run: those of the rows, those that the layers compute, and of padded batches."""
    return {
        "steps": work.steps,
        "real": sum(work.real),
        "padded": work.padded,
        "computed": work.computed,
        "run_real": work.trained,
        "run_computed": sum(piece.tokens for piece in work.pieces),
    }


@dataclass(frozen=True)
class Loaded:
    """What need not be sketched of a model that is there: `sizes_of` it, and what its layers keep."""

    sizes: tuple[int, int, int]
    kept: activations.Activations


@dataclass(frozen=True)
class Forecast:
    """A model, rows and a machine, for which recipes that differ in their settings can be planned.

    data: None where there are no rows, or no tokenizer. loading: asked when all is measured for the seconds until then.
    free: what there is. layer_seconds: of a micro-batch, with each of these numbers of threads. loaded: None where the
    weights are yet to come.
    """

    config: Any
    ref: str
    data: Prepared | None
    device: str
    runtime: int
    loading: Callable[[], float]
    engine: str
    share: bool
    free: Room
    layer_seconds: Callable[[Sequence[Example], Sequence[int]], Mapping[int, float]]
    loaded: Loaded | None = None
    sketches: dict[Any, Sketch] = field(default_factory=dict)
    measured: dict[str, Rates] = field(default_factory=dict)

    def plan(self, recipe: Recipe, dtype: str, measure: Measure = lambda work, recomputed: None) -> Plan:
        """What this recipe takes in this dtype. `measure` is asked once a dtype for rates."""
        sketch, there = self.sketch(recipe, dtype), self.loaded
        sizes = there.sizes if there else sketch.sizes
        rows = self.data.train if self.data else self._imagined(recipe)
        steps = plan.steps_of(recipe.train, rows)
        ahead = 0 if there else sizes[0]
        found = there.kept if there else sketch.kept_per_token([max(rows, key=lambda row: len(row.input_ids))])
        layers = plan.pick_checkpointing(recipe.train, found, steps, self.device, to_come=ahead)
        budget = plan.pick_micro_batch(recipe.train, found, layers.value, self.device, to_come=ahead)
        machine = Machine(
            self.device, torch.get_num_threads(), plan.free_bytes(recipe.train, self.device, ahead),
            max(budget.value, max(steps.lengths)) * found.bytes_per_token(layers.value),
            sketch.layers if self.data else 0, self.layer_seconds,
        )  # fmt: skip
        processes = pick_cpu_processes(recipe.train, sketch.engine, rows, steps, budget.value, machine)
        choices = {
            "train.gradient_checkpointing": layers,
            "train.micro_batch_tokens": budget,
            "train.cpu_processes": processes,
        }
        cut = Cut.of(recipe.train, budget.value, processes.value)
        work = self._work(recipe, steps, sketch.engine, cut)
        dearest = work.dearest if work else cut.dearest(rows, [range(len(rows))], sketch.engine)
        taken = max((sketch.take(batch, layers.value) for batch in dearest), key=lambda each: each.total)
        stored_dtype = getattr(torch, self._stored_dtype)
        stored = sizes[0] * stored_dtype.itemsize // sketch.dtype.itemsize if stored_dtype != sketch.dtype else 0
        needs = memory.memory(
            self.device,
            sizes,
            taken,
            stored=stored,
            runtime=self.runtime,
            half=dtype == "bfloat16",
            answers=memory.answers_bytes(self.config, sketch.dtype, work) if work else 0,
            offloaded=recipe.train.offload_activations,
            processes=processes.value,
        )
        planned = Plan(
            self.ref, self.device, dtype, sizes[2], sketch.layers, layers.value,
            max(map(sketch.engine.cost, dearest)), needs, self.free, choices=choices, work=work,
        )  # fmt: skip
        if work is None:
            return planned
        if dtype not in self.measured and (found_rates := measure(work, layers.value)) is not None:
            self.measured[dtype] = found_rates
        if dtype not in self.measured:
            return planned
        unplanned, runs = calibration.unplanned(self.device, cpu_name())
        spent = seconds(
            work,
            self.measured[dtype],
            layers=sketch.layers,
            recomputed=layers.value,
            loading=self.loading() + ahead / READ_PER_SECOND,
            saved_bytes=room.BYTES_PER_WEIGHT * sizes[1] // 4,
            dearest=[Piece.of(batch, sketch.engine) for batch in dearest] if planned.rehearses else [],
            unplanned=unplanned,
        )
        return replace(planned, seconds=spent, rates=self.measured[dtype], learned_from=runs)

    def of(self, data: Prepared) -> Forecast:
        """The same with other rows."""
        return replace(self, data=data)

    def sketch(self, recipe: Recipe, dtype: str) -> Sketch:
        name = dtype, recipe.adapter.model_dump_json()
        if name not in self.sketches:
            remote = recipe.model.trust_remote_code
            self.sketches[name] = Sketch(
                self.config, recipe.adapter, dtype=dtype, device=self.device, engine=self.engine,
                share=self.share, remote_code=remote,
            )  # fmt: skip
        return self.sketches[name]

    @property
    def _stored_dtype(self) -> str:
        return str(getattr(self.config, "dtype", None) or "float32").removeprefix("torch.")

    def _imagined(self, recipe: Recipe) -> list[Example]:
        text = self.config.get_text_config()
        longest = pick_max_length(recipe.data, getattr(text, "max_position_embeddings", None)).value
        asked = recipe.train.micro_batch_tokens
        tokens = max(longest, plan.MOST_TOKENS[self.device] if asked == "auto" else asked)
        return imagined(longest, tokens, text.vocab_size)

    def _work(self, recipe: Recipe, steps: Steps, engine: Engine, cut: Cut) -> Workload | None:
        if self.data is None:
            return None
        total = plan.total_steps(recipe.train, steps)
        eval_steps = plan.pick_eval_steps(recipe.train, total).value
        save_steps = plan.pick_save_steps(recipe.train, total, eval_steps).value
        return workload(recipe, self.data, steps, engine, cut=cut, eval_steps=eval_steps, save_steps=save_steps)


def of_recipe(recipe: Recipe, began: float) -> tuple[Plan, Forecast, dict[str, Any] | None]:
    """The plan of a recipe whose weights need not be there, and the lengths of its rows where those are.

    Args:
        began: `time.perf_counter()` when the command began.
    """
    choices: dict[str, Choice[Any]] = {}
    config, folder = subject.read_config(recipe.model)
    data = subject.read_rows(recipe, folder, choices)
    job.pick_device(recipe, choices, {})
    device, dtype = choices["model.device"].value, choices["model.dtype"].value
    torch.set_num_threads(choices["threads"].value)
    free, reading = room_now(device), time.perf_counter() - began
    forecast = Forecast(
        config, recipe.model.ref, data, device, resident_bytes(),
        lambda: reading, "plain" if recipe.train.engine == "plain" else "flat",
        share=recipe.adapter.dropout == 0 and not has_dropout(_Only(config)), free=free,
        layer_seconds=lambda batch, threads: rehearsal.layer_seconds(*short(), batch, threads),
    )  # fmt: skip

    @functools.cache
    def short() -> tuple[Any, Engine]:
        assert data is not None
        model = rehearsal.short_model(config, dtype=dtype, device=device, remote_code=recipe.model.trust_remote_code)
        model = adapters.attach(model, recipe.adapter)
        return model, pick_engine(model, data.train, asked=recipe.train.engine).value

    def measure(work: Workload, recomputed: int) -> Rates:
        captured = device == "cuda" and may_capture(*short(), recipe.train, recomputed)
        engine = forecast.sketch(recipe, dtype).engine
        name = rates.key(config, work.samples, engine, **_facts(recipe, work, device, dtype), captured=captured)
        return rates.of(name, device, dtype, lambda: rehearsal.measure(*short(), work, dtype, captured=captured))

    planned = forecast.plan(recipe, dtype, measure)
    lengths = None
    if data is not None:
        labelled = sum(row.num_labels for row in data.train)
        lengths = lengths_of([len(row.input_ids) for row in data.train], labelled).to_json()
    return replace(planned, choices={**choices, **planned.choices}), forecast, lengths


def of_job(made: job.Job, began: float) -> Plan:
    """The plan of a job, whose model is loaded. What it has chosen is taken as it is."""
    recipe = takeover.settled(made.recipe, made.choices)
    device, dtype = made.value("model.device"), made.value("model.dtype")
    model, engine = made.model, made.engine
    forecast = Forecast(
        model.config, recipe.model.ref, made.data, device, made.runtime,
        lambda: time.perf_counter() - began, engine.name, share=getattr(engine, "share", False),
        free=room_now(device), layer_seconds=partial(rehearsal.layer_seconds, model, engine),
        loaded=Loaded(sizes_of(model), made.kept),
    )  # fmt: skip

    captured = made.value("train.cuda_graphs")

    def measure(work: Workload, recomputed: int) -> Rates:
        name = rates.key(model.config, work.samples, engine, **_facts(recipe, work, device, dtype), captured=captured)
        return rates.of(name, device, dtype, lambda: rehearse(work))

    def rehearse(work: Workload) -> Rates:
        recomputed = [layer for layer in activations.decoder_layers(model) if layer.gradient_checkpointing]
        for layer in recomputed:
            layer.gradient_checkpointing = False  # type: ignore[assignment]
        found = rehearsal.measure(model, engine, work, dtype, captured=captured)
        release()  # or what the run takes lies between the holes that this left
        for layer in recomputed:
            layer.gradient_checkpointing = True  # type: ignore[assignment]
        return found

    return forecast.plan(recipe, dtype, measure)


def before_training(made: job.Job, began: float) -> events.Plan | None:
    """The plan for the run's log, or None: whatever a model's own code cannot do without weights, it can with them."""
    try:
        planned = {"event": "plan", "step": 0, **of_job(made, began).to_json()}
        planned["peak_before"] = peak_bytes(made.value("model.device"))  # a rehearsal's too
    except Exception as error:
        console.warn(f"memory and time could not be planned ({str(error).partition(chr(10))[0][:200]})")
        return None
    return cast(events.Plan, planned)


def room_now(device: str) -> Room:
    """What is free, and what this process holds already."""
    host = available_bytes("cpu") + resident_bytes()
    if device == "cuda":
        return Room(available_bytes("cuda") + torch.cuda.memory_reserved(), host)
    return Room(host, host)


def _facts(recipe: Recipe, work: Workload, device: str, dtype: str) -> dict[str, Any]:
    of_work = {"questions": work.questions, "processes": work.processes}
    return {"device": device, "dtype": dtype, "adapter": recipe.adapter.model_dump(), **of_work}


class _Only:
    """A config where a model is asked for: it has no modules."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def modules(self) -> list[Any]:
        return []
