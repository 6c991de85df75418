"""A run that goes on computes as it began: what was chosen then is not chosen again, or its last bits would differ."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

from luthier import console
from luthier.choice import Choice
from luthier.errors import InputError, Problem, RunError
from luthier.hardware import compute
from luthier.hardware.probe import cpu_name
from luthier.recipe.schema import Recipe

Choices = Mapping[str, Choice[Any]]

SETTINGS = (
    "model.device",
    "model.dtype",
    "model.thinking",
    "data.max_length",
    "train.engine",
    "train.micro_batch_tokens",
    "train.eval_steps",
    "train.save_steps",
    "train.gradient_checkpointing",
    "train.cuda_graphs",
    "train.cpu_processes",
)
"""Settings with an `auto` that measures, counts or asks the machine."""

MACHINE = "machine"
LIBRARIES = ("torch", "transformers", "peft", "accelerate")


def settled(recipe: Recipe, began_with: Choices) -> Recipe:
    """The recipe with what the run began with in the place of each `auto`: obeyed or refused, like any setting."""
    sections: dict[str, dict[str, Any]] = {}
    for name in SETTINGS:
        if name in began_with:
            section, _, setting = name.partition(".")
            sections.setdefault(section, {})[setting] = began_with[name].value
    return recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update=values) for name, values in sections.items()}
    )


@contextlib.contextmanager
def as_it_began(began_with: Choices) -> Iterator[None]:
    """Says of what this machine cannot do that the run began with it: the recipe does not ask for it."""
    try:
        yield
    except InputError as error:
        if not began_with:
            raise
        fix = "go on on a machine like the first one, or begin again with --fresh"
        raise RunError(*(Problem(p.where, f"{p.what}; the run began so", fix) for p in error.problems)) from None


def pick_threads(began_with: Choices) -> Choice[int]:
    """As many as at the beginning: a sum over other parts is rounded otherwise."""
    now = compute.pick_threads()
    began = began_with.get("threads", now)
    if began.value != now.value:
        console.warn(
            f"{began.value} CPU threads, as at the beginning; today it would be {now.value} ({now.reason}), which "
            "would change the last bits of the result"
        )
    return began


def pick_machine(began_with: Choices) -> Choice[str]:
    """Processor and libraries. Another one is named and not refused: it rounds otherwise, and is right as well."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    now = Choice(f"{cpu_name()}; {versions}", "on another one the result may differ in its last bits")
    began = began_with.get(MACHINE, now)
    if began.value != now.value:
        console.warn(f"began on {began.value}, goes on on {now.value}: the result may differ in its last bits")
    return began


def reasons(choices: Choices, began_with: Choices) -> dict[str, Choice[Any]]:
    """The choices, with the first session's reasons where the run goes on."""
    return {**choices, **{name: began_with[name] for name in SETTINGS if name in began_with and name in choices}}
