"""From a recipe to model, rows and adapter, with every automatic choice on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from luthier import console
from luthier.choice import Choice
from luthier.data.prepare import Prepared, pick_max_length, prepare
from luthier.data.render import Renderer
from luthier.data.steps import Steps
from luthier.engine.choose import pick_engine
from luthier.engine.engines import Engine
from luthier.errors import InputError, TrackerError
from luthier.hardware import compute
from luthier.hardware.environment import prepare_torch
from luthier.hub.fetch import LocalModel, fetch_data, fetch_model
from luthier.model import adapters, load
from luthier.recipe.schema import ModelSettings, Recipe
from luthier.training import activations, plan, track


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

    def value(self, setting: str) -> Any:
        return self.choices[setting].value


def prepare_job(recipe: Recipe) -> Job:
    """Raises InputError for whatever keeps this recipe from being trained on this machine."""
    choices: dict[str, Choice[Any]] = {f"environment.{name}": choice for name, choice in prepare_torch().items()}
    check_sources(recipe)
    console.say(f"Model {recipe.model.ref}")
    base, renderer = open_model(recipe, choices)
    max_length = choices["data.max_length"] = pick_max_length(recipe.data, load.context_length(base.path))
    data = prepare(recipe.data, renderer, max_length=max_length.value, seed=recipe.train.seed)
    show_data(data)
    plan.check_heldout(recipe.train, bool(data.heldout))
    if recipe.data.holds_out and not data.heldout:
        console.warn("no held-out row is left: nothing will tell how the model does on new ones")
    choices["data.files"] = Choice(data.fingerprint, "their fingerprint: with these files alone the run goes on")

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
    choices["train.eval_steps"] = plan.pick_eval_steps(recipe.train, total)
    choices["train.save_steps"] = plan.pick_save_steps(recipe.train, total, choices["train.eval_steps"].value)
    choices["tokens of an epoch"] = plan.saved_tokens(engine.value, data.train, recipe.train, steps, budget.value)
    return Job(recipe, base, renderer, data, model, engine.value, steps, choices)


def check_sources(recipe: Recipe) -> None:
    """Raises InputError with all that keeps trackers, model and data from being there, fetching what is missing."""
    data = [recipe.data.train] if isinstance(recipe.data.train, str) else recipe.data.train
    attempts: list[Callable[[], object]] = [
        lambda: _need_trackers(recipe),
        lambda: fetch_base(recipe.model),
        *(partial(fetch_data, ref) for ref in (*data, recipe.data.heldout) if ref is not None),
    ]
    errors: list[InputError] = []
    for attempt in attempts:
        try:
            attempt()
        except InputError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else InputError(*(each for error in errors for each in error.problems))


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


def _load(recipe: Recipe, base: LocalModel, choices: dict[str, Choice[Any]]) -> Any:
    """The model with a fresh adapter, on the device and in the dtype that this machine computes fastest."""
    import torch

    device = choices["model.device"] = compute.pick_device(recipe.model.device)
    dtype = choices["model.dtype"] = compute.pick_dtype(device.value, recipe.model.dtype)
    threads = choices["threads"] = compute.pick_threads()
    torch.set_num_threads(threads.value)
    torch.manual_seed(recipe.train.seed)
    remote = recipe.model.trust_remote_code
    model = load.load_model(base.path, dtype=dtype.value, device=device.value, trust_remote_code=remote)
    return adapters.attach(model, recipe.adapter)


def show_data(data: Prepared) -> None:
    """The files with what they were taken for, and the ledger."""
    for file in data.files:
        console.say(f"Data {file['path']}: {describe(file)}")
    if data.unused_columns:
        console.warn(f"columns that are not used: {', '.join(data.unused_columns)}")
    data.ledger.show()


def describe(file: dict[str, Any]) -> str:
    """What a data file was taken for: `347 rows, messages (jsonl, utf-8)`."""
    return f"{file['rows']:,} rows, {file['format']} ({file['kind']}, {file['encoding']})"
