"""A recipe file and its `--set` overrides to a checked `Recipe`: every problem at once, each with its nearest fix."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.errors import Problem, RecipeError
from luthier.recipe.document import expected
from luthier.recipe.schema import Recipe, expand_short_forms

SHORT_FORMS = {"model": "model.ref", "data": "data.train", "system": "data.system", "track": "track.to"}
LARGEST_FILE = 1_000_000  # bytes; a recipe has some hundreds
PROBLEMS_LISTED = 20
UNSAFE = re.compile("[\0\ud800-\udfff\ufdd0]")  # no path, page or tokenizer takes these
EXAMPLES = {"model": "model: Qwen/Qwen3-0.6B", "data": "data: rows.json", "output": "output: runs/first"}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a YAML recipe. `overrides` are `section.setting=value`, the value in YAML.

    Relative paths in the recipe stay as written: they are read from the folder the command runs in.
    Raises RecipeError with every problem found.
    """
    return with_overrides(_read_yaml(Path(path)), overrides, str(path))


def as_recipe(recipe: Recipe | dict[str, Any] | str | Path) -> Recipe:
    """Of the Python API: a file, a dict of settings, or a Recipe as it is. Raises RecipeError."""
    if isinstance(recipe, Recipe):
        return recipe
    return parse_recipe(recipe) if isinstance(recipe, dict) else load_recipe(recipe)


def with_overrides(raw: dict[str, Any], overrides: Sequence[str], where: str) -> Recipe:
    """Settings with `section.setting=value` overrides put in. Raises RecipeError with every problem found."""
    raw = expand_short_forms(raw)
    problems = [problem for text in overrides if (problem := _override(raw, text)) is not None]
    try:
        recipe = parse_recipe(raw, where)
    except RecipeError as error:
        raise RecipeError(*problems, *error.problems) from None
    if problems:
        raise RecipeError(*problems)
    return recipe


def parse_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    """Checks settings given as a dict (the Python API). Raises RecipeError with every problem found."""
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        # Of a setting that may be of several types pydantic names each that it is not; for us it is one problem.
        found = {_setting(item["loc"]): item for item in reversed(error.errors())}
        raise _error([_problem(where, path, item) for path, item in reversed(found.items())], where) from None
    problems = [*_unsafe_texts(recipe.model_dump(), where), *_contradictions(recipe, where)]
    if problems:
        raise _error(problems, where)
    return recipe


def _error(problems: list[Problem], where: str) -> RecipeError:
    """The first problems in full, the others as a number."""
    more = len(problems) - PROBLEMS_LISTED
    rest = [Problem(where, f"{more:,} more problems like these", "correct those above first")] if more > 0 else []
    return RecipeError(*problems[:PROBLEMS_LISTED], *rest)


def _unsafe_texts(value: Any, where: str, setting: str = "") -> Iterator[Problem]:
    """Texts with characters that JSON and YAML can write and files, pages and tokenizers cannot hold."""
    if isinstance(value, str) and UNSAFE.search(value):
        place = f"{where}, {setting}"
        yield Problem(place, "holds NUL, half a character (a lone surrogate) or U+FDD0", "delete that character")
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unsafe_texts(key, where, setting)
            yield from _unsafe_texts(item, where, f"{setting}.{key}".lstrip("."))
    if isinstance(value, list):
        for item in value:
            yield from _unsafe_texts(item, where, setting)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    from luthier.recipe import yaml_text

    try:
        if path.stat().st_size > LARGEST_FILE:
            what = f"has {path.stat().st_size / 1e6:,.1f} MB: that is no recipe"
            raise RecipeError(Problem(str(path), what, f"to look at data: luthier data {path.name} -m MODEL"))
        raw = yaml_text.parse(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # a NUL in the name; not UTF-8
        if not isinstance(error, UnicodeDecodeError):
            raise RecipeError(Problem(repr(str(path)), "cannot be the name of a file", "check the path")) from None
        raise RecipeError(Problem(str(path), "is not UTF-8 text", "save it as UTF-8")) from None
    except OSError as error:
        near = [p.name for p in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
        fix = f"recipes in that folder: {', '.join(near)}" if near else "check the path; recipes/ has complete ones"
        raise RecipeError(Problem(str(path), f"cannot be read ({error.strerror or error})", fix)) from None
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

    from luthier.recipe import yaml_text

    key, equals, value_text = text.partition("=")
    key, where = key.strip(), f"--set {text}"
    if not equals or not key:
        return Problem(where, "is not of the form setting=value", "write it as --set train.epochs=1")
    try:
        value = yaml_text.parse(value_text)
    except yaml.YAMLError:
        return Problem(where, "the value is not YAML", "put it in quotes: --set 'data.system=\"text\"'")
    if not isinstance(value, dict):  # `model=REF` changes the reference alone, not what else the section holds
        key = SHORT_FORMS.get(key, key)
    *sections, last = key.split(".")
    target = raw
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            return Problem(where, f"'{section}' is one value, not a section", "see docs/recipe.md")
    target[last] = value
    return None


def _setting(loc: Sequence[int | str]) -> tuple[str, ...]:
    """Where pydantic found something wrong, as a setting: without positions in a list and names of types."""
    return tuple(str(part) for part in loc[: 2 if loc and _settings_of(str(loc[0])) else 1])


def _problem(where: str, path: tuple[str, ...], item: Any) -> Problem:
    """One pydantic error in our words."""
    if not path:
        return Problem(where, "a key holds half a character (a lone surrogate)", "delete that character")
    name = ".".join(path)
    place = f"{where}, {name[:80]}"
    if name == "system":
        return Problem(place, "cannot be put into data", "write it once, as data.system")
    if item["type"] == "extra_forbidden" or path[-1] not in _settings_of(*path[:-1]):  # `null: x`
        return Problem(place, "is no setting", _nearest(path[-1], _settings_of(*path[:-1])))
    if item["type"] == "missing":
        return Problem(place, "is missing", f"add it: {EXAMPLES.get(name, f'{path[-1]}: …')}")
    return Problem(place, f"cannot be {_SHORT.repr(item['input'])}", f"write {expected(path)}")


def _nearest(key: str, here: list[str]) -> str:
    """What may have been meant: a setting of that very name in another section, one like it here, or like it there."""
    others = {f"{section}.{name}": name for section in Recipe.model_fields for name in _settings_of(section)}
    same = [setting for setting, name in others.items() if name == key]
    like = same or difflib.get_close_matches(key, here, n=1, cutoff=0.5)
    names = like or difflib.get_close_matches(key, others.values(), n=1, cutoff=0.7)
    near = like or [setting for setting, name in others.items() if name in names]
    return f"did you mean {near[0]}?" if near else f"settings here: {', '.join(here)}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


def _settings_of(*section: str) -> list[str]:
    """The names of a section's settings (of the recipe's own without one), none for what is no section."""
    models: dict[tuple[str, ...], Any] = {(name,): field.annotation for name, field in Recipe.model_fields.items()}
    return list(getattr({**models, (): Recipe}.get(section), "model_fields", ()))


def _contradictions(recipe: Recipe, where: str) -> list[Problem]:
    """Settings that are each right and cannot hold together."""
    train, data, problems = recipe.train, recipe.data, []
    accumulation = train.gradient_accumulation_steps
    if train.batch_tokens is not None and train.batch_size != "auto":
        what = "says with batch_size twice how much a step holds"
        problems.append(Problem(f"{where}, train.batch_tokens", what, "leave one of the two out"))
    if accumulation != "auto" and train.batch_size != "auto" and accumulation > train.batch_size:
        what = f"cuts a step of {train.batch_size} rows into {accumulation} micro-batches"
        fix = "batch_size is the rows of a whole optimizer step: raise it, or lower gradient_accumulation_steps"
        problems.append(Problem(f"{where}, train.gradient_accumulation_steps", what, fix))
    if accumulation != "auto" and train.micro_batch_tokens != "auto":
        what = "says with micro_batch_tokens twice how a step is cut"
        problems.append(Problem(f"{where}, train.gradient_accumulation_steps", what, "leave one of the two at auto"))
    for setting, asked in (("early_stopping_patience", train.early_stopping_patience), ("load_best", train.load_best)):
        if asked and not data.holds_out:
            what = "needs held-out rows, and data.holdout is 0"
            problems.append(Problem(f"{where}, train.{setting}", what, "set data.holdout: 5%"))
    save, evaluate = train.save_steps, train.eval_steps
    if train.load_best and save != "auto" and evaluate != "auto" and save % evaluate:
        what = f"saves every {save} steps, and load_best needs the loss of each checkpoint"
        problems.append(Problem(f"{where}, train.save_steps", what, f"make it a multiple of eval_steps, {evaluate}"))
    if train.warmup >= 1 and train.warmup != int(train.warmup):
        what = f"{train.warmup} is neither a share below 1 nor a whole number of steps"
        problems.append(Problem(f"{where}, train.warmup", what, "write 0.05 or 100"))
    if recipe.track.cloud and not recipe.track.to:
        problems.append(Problem(f"{where}, track.cloud", "no tracker is named", "add track.to: [swanlab]"))
    return problems
