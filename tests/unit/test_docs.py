"""The documents agree with the files and settings that they speak of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.recipe.document import document
from luthier.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.joinpath("docs").glob("*.md")])
ENGLISH_ONLY = {"architecture.md", "CHANGELOG.md", "CONTRIBUTING.md"}
SECTIONS = "|".join(Recipe.model_fields)


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def settings() -> set[str]:
    return set(re.findall(r"^\| `([\w.]+)`", document(), flags=re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_recipe_named_is_shipped(page: Path) -> None:
    named = re.findall(r"recipes/[\w.-]+\.yaml", page.read_text(encoding="utf-8"))
    assert [recipe for recipe in named if not (ROOT / recipe).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_piece_of_a_recipe_is_valid(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        raw: Any = yaml.safe_load(block)
        Recipe.model_validate({"model": "owner/name", "data": "rows.jsonl", "output": "runs/docs", **raw})


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "architecture.md"], ids=page_id)
def test_every_setting_named_exists(page: Path) -> None:
    """Not in architecture.md: there, `data.split` is a module."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?:`|--set )((?:{SECTIONS})\.\w+)", text)
    assert [name for name in named if name not in settings()] == []


def test_the_settings_are_really_read_from_the_page() -> None:
    assert {"output", "model.ref", "data.train", "adapter.rank", "train.epochs", "track.to"} <= settings()


def test_every_page_comes_in_both_languages() -> None:
    english = {page_id(page) for page in PAGES if ".zh-CN" not in page.name and page.name not in ENGLISH_ONLY}
    chinese = {page_id(page) for page in PAGES if ".zh-CN" in page.name}
    assert chinese == {name.replace(".md", ".zh-CN.md") for name in english}
