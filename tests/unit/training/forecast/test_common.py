"""The table of docs/plan.md is what `luthier plan --common` makes."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from luthier.training.forecast import common
from luthier.training.forecast.common import MACHINES, Machine, Needs

DOCS = Path(__file__).parents[4] / "docs"
PAGES = ["plan.md", "plan.zh-CN.md"]
QUICK = ["Qwen3 0.6B", "Qwen3 32B", "Llama 3.1 8B", "Gemma 3 270M", "Gemma 4 E2B", "Gemma 4 31B"]


def written(page: str) -> list[list[str]]:
    """The table's lines: its columns, then a line for each model."""
    lines = re.findall(r"^\| (.+) \|$", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    cells = [line.split(" | ") for line in lines]
    first = next(index for index, line in enumerate(cells) if line[0] == "model" and "Strix Halo 128 GB" in line)
    return [line for line in cells[first:] if len(line) == len(cells[first]) and set(line) != {"---"}]


@functools.cache
def needs(name: str) -> Needs:
    return common.needs(next(model for model in common.models() if model["name"] == name))


@pytest.mark.parametrize("page", PAGES)
def test_the_table_has_every_model(page: str) -> None:
    columns, *rows = written(page)
    assert columns == common.columns()
    assert [row[0] for row in rows] == [model["name"] for model in common.models()]


@pytest.mark.parametrize("name", QUICK)
def test_the_table_is_what_the_command_makes(name: str) -> None:
    for page in PAGES:
        assert common.row(needs(name)) in written(page)


@pytest.mark.real
@pytest.mark.parametrize("name", [model["name"] for model in common.models()])
def test_every_line_of_it(name: str) -> None:
    """A minute and a half."""
    assert common.row(needs(name)) in written("plan.md")


def test_weights_are_those_that_the_models_are_named_for() -> None:
    """With LoRA of rank 16, and without a vision tower; E2B with 2.3 billion in the embeddings of its 35 layers."""
    counted = {name: needs(name).weights for name in QUICK}
    assert counted == {
        "Qwen3 0.6B": 596_049_920 + 10_092_544,
        "Qwen3 32B": 32_762_123_264 + 134_217_728,
        "Llama 3.1 8B": 8_030_261_248 + 41_943_040,
        "Gemma 3 270M": 268_098_176 + 3_796_992,
        "Gemma 4 E2B": 2_279_759_104 + 35 * 256 * 262_144 + 26_333_184,
        "Gemma 4 31B": 30_697_345_280 + 122_429_440,
    }


def test_what_is_not_sure_is_said() -> None:
    assert [model["name"] for model in common.models() if "not checked" in model["note"]] == [
        "Qwen3.5 4B",
        "Gemma 3 270M",
    ]
    assert all(model["source"].endswith(("config.json", "text_config")) for model in common.models())


@pytest.mark.parametrize(("room", "sign"), [(50, "yes"), (49, "recomputed"), (20, "recomputed"), (19, "–")])
def test_signs(room: int, sign: str) -> None:
    needs = Needs("a model", 1, {("cuda", False): 50, ("cuda", True): 20, ("cpu", False): 5, ("cpu", True): 5})
    assert needs.on(Machine("a card", "cuda", room)) == sign
    assert [machine.room for machine in MACHINES if machine.name == "8 GB card"] == [8 * 2**30]
