"""From a recipe to model, rows and adapter, with every automatic choice on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from luthier import console
from luthier.choice import Choice
from luthier.data.prepare import Prepared, pick_max_length, prepare
from luthier.data.render import Example, Renderer
from luthier.data.steps import Steps
from luthier.engine.choose import pick_engine
from luthier.engine.engines import Engine
from luthier.errors import TrackerError, all_of
from luthier.hardware import compute
from luthier.hardware.determinism import pick_deterministic
from luthier.hardware.environment import prepare_torch
from luthier.hardware.memory import resident_bytes
from luthier.hub.fetch import LocalModel, fetch_data, fetch_model
from luthier.model import adapters, load
from luthier.recipe.schema import ModelSettings, Recipe
from luthier.training import activations, plan, room, takeover, track
from luthier.training.capture import pick_cuda_graphs
from luthier.training.cut import Cut
from luthier.training.forecast.rehearsal import layer_seconds
from luthier.training.processes import Machine, pick_cpu_processes


@dataclass(frozen=True)
class Job:
    """Everything of a run that is decided before its first step."""

    recipe: Recipe
    base: LocalModel
    renderer: Renderer
    data: Prepared
    model: Any
    engine: Engine
    steps: Steps
    choices: dict[str, Choice[Any]]
    room: int
    """Bytes on the disk that the run needs."""
    runtime: int
    """Bytes that the process held before it read the weights."""
    kept: activations.Activations

    def value(self, setting: str) -> Any:
        return self.choices[setting].value


def prepare_job(recipe: Recipe, began_with: Mapping[str, Choice[Any]] | None = None) -> Job:
    """Raises InputError for whatever keeps this recipe from being trained on this machine.

    Args:
        began_with: the choices of the run's first session, where it goes on.
    """
    began_with = began_with or {}
    environment = prepare_torch(deterministic=recipe.train.deterministic)
    choices: dict[str, Choice[Any]] = {f"environment.{name}": choice for name, choice in environment.items()}
    check_sources(recipe)
    console.say(f"Model {recipe.model.ref}")
    asked, recipe = recipe, takeover.settled(recipe, began_with)
    base, renderer = open_model(recipe, choices)
    data, _, _ = all_of(
        lambda: _prepare_data(recipe, base, renderer, choices),
        lambda: pick_device(recipe, choices, began_with),
        lambda: adapters.check_targets(base.path, recipe.adapter, recipe.model),
    )
    runtime = resident_bytes()
    with takeover.as_it_began(began_with):
        model = _load(recipe, base, choices)
        engine = pick_engine(model, data.train, asked=recipe.train.engine)
    choices["train.engine"] = Choice(engine.value.name, engine.reason)
    steps = plan.steps_of(recipe.train, data.train)
    choices["train.batch_size"] = plan.pick_batch_size(recipe.train, steps)
    total = plan.total_steps(recipe.train, steps)
    device = choices["model.device"].value
    plan.check_offloading(recipe.train, device)
    found = activations.measure(model, engine.value, data.train)
    layers = choices["train.gradient_checkpointing"] = plan.pick_checkpointing(recipe.train, found, steps, device)
    activations.recompute(model, layers.value)
    budget = plan.pick_micro_batch(recipe.train, found, layers.value, device)
    choices["train.micro_batch_tokens"] = budget
    largest = max(budget.value, max(steps.lengths)) * found.bytes_per_token(layers.value)
    machine = Machine(
        device, choices["threads"].value, plan.free_bytes(recipe.train, device), largest,
        found.layers, partial(layer_seconds, model, engine.value),
    )  # fmt: skip
    with takeover.as_it_began(began_with):
        processes = choices["train.cpu_processes"] = pick_cpu_processes(
            recipe.train, engine.value, data.train, steps, budget.value, machine
        )
        cut = Cut.of(recipe.train, budget.value, processes.value)
        first = partial(_dearest, cut, engine.value, data.train, steps)
        choices["train.cuda_graphs"] = pick_cuda_graphs(model, engine.value, recipe.train, layers.value, first)
    choices["train.eval_steps"] = plan.pick_eval_steps(recipe.train, total)
    choices["train.save_steps"] = plan.pick_save_steps(recipe.train, total, choices["train.eval_steps"].value)
    choices["tokens of an epoch"] = plan.saved_tokens(engine.value, data.train, steps, cut)
    choices = takeover.reasons(choices, began_with)
    needed = room.needed(model, recipe.train, total, base.path)
    return Job(asked, base, renderer, data, model, engine.value, steps, choices, needed, runtime, found)


def _dearest(cut: Cut, engine: Engine, examples: Sequence[Example], steps: Steps) -> Sequence[Example]:
    """The run's micro-batch of most tokens."""
    return cut.dearest(examples, steps.epoch(0), engine)[0]


def _prepare_data(recipe: Recipe, base: LocalModel, renderer: Renderer, choices: dict[str, Choice[Any]]) -> Prepared:
    max_length = choices["data.max_length"] = pick_max_length(recipe.data, load.context_length(base.path))
    data = prepare(recipe.data, renderer, max_length=max_length.value, seed=recipe.train.seed)
    show_data(data)
    plan.check_heldout(recipe.train, bool(data.heldout))
    if recipe.data.holds_out and not data.heldout:
        console.warn("no held-out row is left: nothing will tell how the model does on new ones")
    choices["data.files"] = Choice(data.fingerprint, "their fingerprint: with these files alone the run goes on")
    return data


def check_sources(recipe: Recipe) -> None:
    """Raises InputError with all that keeps trackers, model and data from being there, fetching what is missing."""
    data = [recipe.data.train] if isinstance(recipe.data.train, str) else recipe.data.train
    attempts: list[Callable[[], object]] = [
        lambda: _need_trackers(recipe),
        lambda: fetch_base(recipe.model),
        *(partial(fetch_data, ref) for ref in (*data, recipe.data.heldout) if ref is not None),
    ]
    all_of(*attempts)


def _need_trackers(recipe: Recipe) -> None:
    problems = track.check(recipe.track)
    if problems:
        raise TrackerError(*problems)


def fetch_base(settings: ModelSettings) -> LocalModel:
    base = fetch_model(settings.ref, revision=settings.revision, allow_code=settings.trust_remote_code)
    load.check_folder(base.path)
    return base


def open_model(recipe: Recipe, choices: dict[str, Choice[Any]]) -> tuple[LocalModel, Renderer]:
    """The model's folder and the renderer of its conversations; no weights yet."""
    load.quiet()
    base = fetch_base(recipe.model)
    tokenizer = load.load_tokenizer(base.path, recipe.model)
    thinking = choices["model.thinking"] = load.pick_thinking(tokenizer, recipe.model.thinking)
    return base, load.make_renderer(base.path, tokenizer, thinking.value)


def pick_device(recipe: Recipe, choices: dict[str, Choice[Any]], began_with: Mapping[str, Choice[Any]]) -> None:
    with takeover.as_it_began(began_with):
        device = choices["model.device"] = compute.pick_device(recipe.model.device)
        choices["model.dtype"] = compute.pick_dtype(device.value, recipe.model.dtype)
    choices["threads"] = takeover.pick_threads(began_with)
    choices["train.deterministic"] = pick_deterministic(device.value, asked=recipe.train.deterministic)
    choices[takeover.MACHINE] = takeover.pick_machine(began_with)


def _load(recipe: Recipe, base: LocalModel, choices: dict[str, Choice[Any]]) -> Any:
    """The model with a fresh adapter, on the device and in the dtype that this machine computes fastest."""
    import torch

    device, dtype = choices["model.device"].value, choices["model.dtype"].value
    torch.set_num_threads(choices["threads"].value)
    torch.manual_seed(recipe.train.seed)
    remote = recipe.model.trust_remote_code
    model = load.load_model(base.path, dtype=dtype, device=device, trust_remote_code=remote)
    return adapters.attach(model, recipe.adapter)


def show_data(data: Prepared) -> None:
    """The files with what they were taken for, and the ledger."""
    for file in data.files:
        console.say(f"Data {file['path']}: {describe(file)}")
    if data.unused_columns:
        console.warn(f"columns that are not used: {', '.join(data.unused_columns)}")
    data.ledger.show()
    data.ledger.warn()


def describe(file: dict[str, Any]) -> str:
    """What a data file was taken for: `347 rows, messages (jsonl, utf-8)`."""
    return f"{file['rows']:,} rows, {file['format']} ({file['kind']}, {file['encoding']})"
