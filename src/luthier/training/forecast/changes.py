"""The smallest changes of a recipe with which it fits, each with its cost in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from luthier.errors import RecipeError
from luthier.hardware import compute
from luthier.recipe.schema import Recipe
from luthier.training.forecast.plan import Forecast, Plan

Settings = dict[str, Any]
"""`section.setting` → value."""


@dataclass(frozen=True)
class Change:
    """Settings with which a recipe fits. `slower`: the steps' time against the recipe's own, None if not known.

    loses: what is lost besides time, empty for nothing.
    """

    settings: Settings
    recipe: Recipe
    plan: Plan
    slower: float | None
    loses: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "peak_bytes": self.plan.memory.peak,
            "slower": self.slower,
            "loses": self.loses,
        }


def changes(recipe: Recipe, planned: Plan, forecast: Forecast) -> list[Change]:
    """What makes a plan fit that does not, the cheapest first: what costs time alone before what costs rows."""
    if planned.fits:
        return []
    found = [each for way in ALONE for each in way(recipe, planned, forecast)]
    others = WITH_LOSS if found else (_both, *WITH_LOSS)
    found += [each for way in others for each in way(recipe, planned, forecast)]
    return sorted(found, key=lambda each: (bool(each.loses), each.slower if each.slower is not None else math.inf))


def with_settings(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with these values in the place of its own."""
    sections: dict[str, Settings] = {}
    for name, value in settings.items():
        section, _, setting = name.partition(".")
        sections.setdefault(section, {})[setting] = value
    return recipe.model_copy(
        update={section: getattr(recipe, section).model_copy(update=values) for section, values in sections.items()}
    )


def _fewer_tokens(recipe: Recipe, planned: Plan, forecast: Forecast, also: Settings | None = None) -> Iterator[Change]:
    """Smaller micro-batches, as large as fit: the steps stay the same.

    Found in steps of a 32nd, no further than a row goes.
    """
    offer = _offer(recipe, planned, forecast)

    def with_tokens(tokens: int) -> Change | None:
        cut = {"train.micro_batch_tokens": tokens, "train.gradient_accumulation_steps": "auto"}
        return offer({**(also or {}), **cut})

    low, high = 1, planned.tokens - 1
    best = with_tokens(low)
    if best is None:
        return
    while high - low > max(1, high // 32):
        middle = (low + high) // 2
        tried = with_tokens(middle)
        if tried is None:
            high = middle
        else:
            low, best = middle, tried
    yield best


def _recomputed(recipe: Recipe, planned: Plan, forecast: Forecast) -> Iterator[Change]:
    """Layers run again: the fewest that are enough."""
    offer = _offer(recipe, planned, forecast)
    few, most = planned.recomputed, planned.layers
    best = offer({"train.gradient_checkpointing": most})
    if best is None or few >= most:
        return
    while few + 1 < most:
        middle = (few + most) // 2
        tried = offer({"train.gradient_checkpointing": middle})
        if tried is None:
            few = middle
        else:
            most, best = middle, tried
    yield best


def _both(recipe: Recipe, planned: Plan, forecast: Forecast) -> Iterator[Change]:
    """All layers run again, and smaller micro-batches: where neither alone is enough."""
    yield from _fewer_tokens(recipe, planned, forecast, {"train.gradient_checkpointing": True})


def _bfloat16(recipe: Recipe, planned: Plan, forecast: Forecast) -> Iterator[Change]:
    """Weights of half the size, where the device multiplies them."""
    rate = compute.measure_rate(forecast.device, "bfloat16")
    if planned.dtype != "float32" or isinstance(rate, str):
        return
    slow = compute.measure_rate(forecast.device, "float32")
    if not isinstance(slow, str) and "float32" in forecast.measured:
        forecast.measured["bfloat16"] = forecast.measured["float32"].scaled(slow / rate)
    again: list[Settings] = [{}, {"train.gradient_checkpointing": True}]
    for more in again:
        made = _offer(recipe, planned, forecast, "bfloat16")({"model.dtype": "bfloat16", **more})
        if made is not None:
            yield made
            return


def _shorter_rows(recipe: Recipe, planned: Plan, forecast: Forecast) -> Iterator[Change]:
    """Long rows left out, where one alone does not fit."""
    data = forecast.data
    if data is None:
        return
    lengths = sorted({len(row.input_ids) for row in data.train}, reverse=True)[1:]
    for length in lengths[:: max(1, len(lengths) // 16)]:
        kept = [row for row in data.train if len(row.input_ids) <= length]
        settings: Settings = {
            "data.max_length": length,
            "train.gradient_checkpointing": True,
            "train.micro_batch_tokens": length,
            "train.gradient_accumulation_steps": "auto",
        }
        shorter = replace(data, train=kept)
        made = _offer(recipe, planned, forecast.of(shorter))(settings)
        if made is not None:
            lost = f"{len(data.train) - len(kept):,} of {len(data.train):,} rows are left out"
            yield replace(made, loses=lost)
            return


Way = Callable[[Recipe, Plan, Forecast], Iterator[Change]]
ALONE: tuple[Way, ...] = (_fewer_tokens, _recomputed)
WITH_LOSS: tuple[Way, ...] = (_bfloat16, _shorter_rows)


def _offer(
    recipe: Recipe, planned: Plan, forecast: Forecast, dtype: str | None = None
) -> Callable[[Settings], Change | None]:
    """Tries settings: the change, or None where the plan with them does not fit."""

    def offer(settings: Settings) -> Change | None:
        changed = with_settings(recipe, settings)
        try:
            plan = forecast.plan(changed, dtype or planned.dtype)
        except RecipeError:  # a model whose layers cannot be recomputed
            return None
        if not plan.fits:
            return None
        slower = plan.seconds.steps / planned.seconds.steps if planned.seconds and plan.seconds else None
        return Change(settings, changed, plan, slower)

    return offer
