"""Every recipe that we ship is a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.recipe.schema import Recipe

ROOT = Path(__file__).parents[3]
SHIPPED = sorted([*ROOT.joinpath("recipes").rglob("*.yaml"), *ROOT.joinpath("src", "luthier").rglob("recipe.yaml")])


def load(path: Path) -> Recipe:
    raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Recipe.model_validate(raw)


def test_these_are_all() -> None:
    assert [path.relative_to(ROOT).as_posix() for path in SHIPPED] == [
        "recipes/huanhuan-cpu.yaml",
        "recipes/huanhuan-qwen3-0.6b.yaml",
        "recipes/minimal.yaml",
        "src/luthier/demo/recipe.yaml",
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_it_is_valid_and_writes_into_runs(path: Path) -> None:
    assert load(path).output.startswith("runs/")


def test_no_two_write_into_the_same_folder() -> None:
    outputs = [load(path).output for path in SHIPPED]
    assert sorted(set(outputs)) == sorted(outputs)


def test_the_huanhuan_recipe_has_the_settings_of_the_tutorial() -> None:
    recipe = load(ROOT / "recipes" / "huanhuan-qwen3-0.6b.yaml")
    assert (recipe.model.ref, recipe.model.thinking) == ("Qwen/Qwen3-0.6B", False)
    assert (recipe.data.system, recipe.data.max_length) == ("现在你要扮演皇帝身边的女人--甄嬛", 1024)
    assert recipe.adapter.model_dump() == {
        "method": "lora",
        "rank": 8,
        "alpha": 32,
        "dropout": 0.1,
        "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
    asked = recipe.train.model_dump(exclude_unset=True)
    assert asked == {
        "epochs": 3,
        "batch_size": 32,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,
        "schedule": "linear",
        "warmup": 0,
        "weight_decay": 0,
        "logging_steps": 10,
        "save_steps": 100,
        "gradient_checkpointing": True,
        "save_on_each_node": True,
    }


def test_the_minimal_recipe_is_four_lines() -> None:
    text = (ROOT / "recipes" / "minimal.yaml").read_text(encoding="utf-8")
    settings = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line.split(":")[0] for line in settings] == ["model", "data", "system", "output"]
