"""Whatever a recipe holds: a Recipe that says the same again, or a RecipeError, each problem with its fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import event, given
from hypothesis import strategies as st
from strategies import scalars, texts, values

from luthier.errors import RecipeError
from luthier.recipe.load import load_recipe, parse_recipe
from luthier.recipe.schema import Recipe, Section

SECTIONS: dict[str, Any] = {name: field.annotation for name, field in Recipe.model_fields.items()}
SETTINGS = [f"{name}.{setting}" for name, kind in SECTIONS.items() for setting in getattr(kind, "model_fields", ())]
PLAUSIBLE = (
    "auto",
    "5%",
    "linear",
    "bfloat16",
    "lora",
    0,
    1,
    4,
    0.05,
    True,
    None,
    [],
    ["a.jsonl"],
    "a.jsonl",
    "runs/x",
)

plausible = st.sampled_from(PLAUSIBLE) | values


def section(kind: Any) -> st.SearchStrategy[Any]:
    """A section with some of its settings, of all kinds; or something else in its place."""
    if not (isinstance(kind, type) and issubclass(kind, Section)):
        return plausible
    known = dict.fromkeys(kind.model_fields, plausible)
    return st.fixed_dictionaries({}, optional=known) | plausible


nearly = st.fixed_dictionaries(
    {"model": st.just("a/b"), "data": st.just("a.jsonl"), "output": st.just("runs/x")},
    optional={name: section(kind) for name, kind in SECTIONS.items() if name not in ("model", "data", "output")},
)
anything = st.fixed_dictionaries({}, optional={name: section(kind) for name, kind in SECTIONS.items()})
overrides = st.builds(
    lambda name, equals, value: f"{name}{equals}{value}",
    st.sampled_from([*SETTINGS, *SECTIONS, "", "a.b.c", "train"]) | texts,
    st.sampled_from(["=", "= ", ""]),
    scalars | st.sampled_from(["[", "{a: 1}", "*x", "!!python/name:os.system", "1e-4", "9" * 5000]),
)


def accepted(attempt: Any) -> Recipe | None:
    """The recipe; None where it was refused, with all that belongs to a refusal."""
    try:
        recipe: Recipe = attempt()
    except RecipeError as error:
        event("refused")
        assert all(problem.where and problem.what and problem.fix for problem in error.problems)
        return None
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    return recipe


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "recipe.yaml"


@given(raw=nearly | anything)
def test_settings_are_a_recipe_or_an_error(raw: dict[str, Any]) -> None:
    accepted(lambda: parse_recipe(raw))


@given(raw=nearly, given=st.lists(overrides, max_size=3))
def test_overrides_are_a_recipe_or_an_error(file: Path, raw: dict[str, Any], given: list[str]) -> None:
    file.write_text(yaml.safe_dump(raw, allow_unicode=False), encoding="utf-8")
    accepted(lambda: load_recipe(file, given))


@given(
    data=st.binary(max_size=80)
    | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.text("ab:-[]{}&*!|>%@'\"#?, \n\t19e.", max_size=80).map(str.encode)
)
def test_a_file_is_a_recipe_or_an_error(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    accepted(lambda: load_recipe(file))
