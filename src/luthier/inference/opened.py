"""A run or a model, opened to be asked: weights, renderer, and the system prompt it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.render import Renderer
from luthier.errors import Problem, RunError
from luthier.hardware import compute
from luthier.hardware.environment import prepare_torch
from luthier.hub.fetch import LocalModel, fetch_model
from luthier.model.adapters import CARD, read_card
from luthier.recipe.schema import ModelSettings, Recipe
from luthier.report.record import RunFolder


@dataclass(frozen=True)
class Opened:
    """`run` is None for a plain model. With a run, `model` is a PeftModel: its base is `model.disable_adapter()`."""

    model: Any
    renderer: Renderer
    system: str | None
    base: LocalModel
    run: RunFolder | None
    dtype: str
    device: str


def open_ref(ref: str, *, dtype: str = "auto") -> Opened:
    """Opens a run folder, or else a model reference. Raises InputError."""
    if (Path(ref) / "recipe.yaml").is_file() or (Path(ref).is_dir() and not (Path(ref) / "config.json").is_file()):
        return open_run(RunFolder.open(ref), dtype=dtype)
    card = Path(ref) / CARD
    kept = read_card(Path(ref)) if card.is_file() else {}  # a merged model remembers how it was asked
    return _open(ModelSettings(ref=ref, thinking=kept.get("thinking")), kept.get("system"), None, dtype)


def open_run(run: RunFolder, *, dtype: str = "auto") -> Opened:
    """The base model with the run's adapter. Raises RunError for a run that has none yet."""
    if not run.is_trained():
        again = "finish it first: the same luthier train command goes on from its last checkpoint"
        raise RunError(Problem(str(run.path), f"has no result yet ({run.state()})", again))
    recipe: Recipe = run.read_recipe()
    return _open(recipe.model, recipe.data.system, run, dtype)


def open_model(settings: ModelSettings, *, dtype: str = "auto") -> Opened:
    """The model that a run was trained on, as its recipe opened it, without an adapter."""
    return _open(settings, None, None, dtype)


def _open(settings: ModelSettings, system: str | None, run: RunFolder | None, dtype: str) -> Opened:
    prepare_torch()  # before the first import of torch
    import torch

    from luthier.model import adapters, load

    load.quiet()
    base = fetch_model(settings.ref, revision=settings.revision, allow_code=settings.trust_remote_code)
    load.check_folder(base.path)
    device = compute.pick_device(settings.device).value
    chosen = compute.pick_dtype(device, settings.dtype if dtype == "auto" else dtype).value
    torch.set_num_threads(compute.pick_threads().value)
    tokenizer = load.load_tokenizer(base.path, settings)
    thinking = load.pick_thinking(tokenizer, settings.thinking).value
    renderer = load.make_renderer(base.path, tokenizer, thinking)
    if run is not None:
        adapters.check_asked_alike(run.adapter_dir, renderer)
    model = load.load_model(base.path, dtype=chosen, device=device, trust_remote_code=settings.trust_remote_code)
    if run is not None:
        model = adapters.load(model, run.adapter_dir, base.path)
    return Opened(model.eval(), renderer, system, base, run, chosen, device)
