"""A recipe file and its `--set` overrides to a checked `Recipe`: every problem at once, each with its nearest fix."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from luthier.errors import Problem, RecipeError
from luthier.recipe.schema import Recipe, expand_short_forms


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a YAML recipe. `overrides` are `section.setting=value`, the value in YAML.

    Relative paths in the recipe stay as written: they are read from the folder the command runs in.
    Raises RecipeError with every problem found.
    """
    return with_overrides(_read_yaml(Path(path)), overrides, str(path))


def with_overrides(raw: dict[str, Any], overrides: Sequence[str], where: str) -> Recipe:
    """Settings with `section.setting=value` overrides put in. Raises RecipeError with every problem found."""
    raw = expand_short_forms(raw)
    problems = [problem for text in overrides if (problem := _override(raw, text)) is not None]
    if problems:
        raise RecipeError(*problems)
    return parse_recipe(raw, where)


def parse_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    """Checks settings given as a dict (the Python API). Raises RecipeError with every problem found."""
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(*(_problem(where, item) for item in error.errors())) from None
    problems = list(_contradictions(recipe, where))
    if problems:
        raise RecipeError(*problems)
    return recipe


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        near = [p.name for p in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
        fix = f"recipes in that folder: {', '.join(near)}" if near else "check the path; recipes/ has complete ones"
        raise RecipeError(Problem(str(path), f"cannot be read ({error.strerror or error})", fix)) from None
    except UnicodeDecodeError:
        raise RecipeError(Problem(str(path), "is not UTF-8 text", "save it as UTF-8")) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(Problem(place, str(reason), "compare with recipes/minimal.yaml")) from None
    if not isinstance(raw, dict):
        raise RecipeError(Problem(str(path), "holds no settings", "compare with recipes/minimal.yaml"))
    return raw


def _override(raw: dict[str, Any], text: str) -> Problem | None:
    """Puts `section.setting=value` into the settings, or says what is wrong with it."""
    import yaml

    key, equals, value_text = text.partition("=")
    where = f"--set {text}"
    if not equals or not key.strip():
        return Problem(where, "has no value", "write it as --set train.epochs=1")
    try:
        value = yaml.safe_load(value_text) if value_text else None
    except yaml.YAMLError:
        return Problem(where, "the value is not YAML", "put it in quotes: --set 'data.system=\"text\"'")
    *sections, last = key.strip().split(".")
    target = raw
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            return Problem(where, f"'{section}' is one value, not a section", "see docs/recipe.md")
    target[last] = value
    return None


def _problem(where: str, item: Any) -> Problem:
    """One pydantic error in our words."""
    path = [str(part) for part in item["loc"]]
    place = f"{where}, {'.'.join(path)}" if path else where
    if item["type"] == "extra_forbidden":
        known = _settings_of(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"settings here: {', '.join(known)}"
        return Problem(place, "is no setting", fix)
    if item["type"] == "missing":
        return Problem(place, "is missing", f"add it: {_example(path)}")
    found = f"{item['input']!r} given" if not isinstance(item["input"], dict) else "a section given"
    return Problem(place, f"{item['msg'][0].lower()}{item['msg'][1:]}, {found}", "see docs/recipe.md")


def _settings_of(path: Sequence[str]) -> list[str]:
    model: Any = Recipe
    for part in path:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        model = next((kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)), None)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _example(path: Sequence[str]) -> str:
    examples = {"model": "model: Qwen/Qwen3-0.6B", "data": "data: rows.json", "output": "output: runs/first"}
    return examples.get(".".join(path), f"{path[-1]}: …")


def _contradictions(recipe: Recipe, where: str) -> list[Problem]:
    """Settings that are each right and cannot hold together."""
    train, data, problems = recipe.train, recipe.data, []
    no_heldout = data.heldout is None and str(data.holdout).strip() in ("0", "0%")
    accumulation = train.gradient_accumulation_steps
    if accumulation != "auto" and accumulation > train.batch_size:
        what = f"cuts a step of {train.batch_size} rows into {accumulation} micro-batches"
        fix = "batch_size is the rows of a whole optimizer step: raise it, or lower gradient_accumulation_steps"
        problems.append(Problem(f"{where}, train.gradient_accumulation_steps", what, fix))
    if accumulation != "auto" and train.micro_batch_tokens != "auto":
        what = "says with micro_batch_tokens twice how a step is cut"
        problems.append(Problem(f"{where}, train.gradient_accumulation_steps", what, "leave one of the two at auto"))
    for setting, asked in (("early_stopping_patience", train.early_stopping_patience), ("load_best", train.load_best)):
        if asked and no_heldout:
            what = "needs held-out rows, and data.holdout is 0"
            problems.append(Problem(f"{where}, train.{setting}", what, "set data.holdout: 5%"))
    if train.warmup >= 1 and train.warmup != int(train.warmup):
        what = f"{train.warmup} is neither a share below 1 nor a whole number of steps"
        problems.append(Problem(f"{where}, train.warmup", what, "write 0.05 or 100"))
    if recipe.track.cloud and not recipe.track.to:
        problems.append(Problem(f"{where}, track.cloud", "no tracker is named", "add track.to: [swanlab]"))
    return problems
