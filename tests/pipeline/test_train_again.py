"""A finished run, or one of another recipe, is not touched unless it is asked for: `luthier train` once more."""

from __future__ import annotations

from typing import Any

import pytest
from driver import Workplace, luthier


@pytest.fixture(scope="module")
def done_recipe(shop: Workplace) -> dict[str, Any]:
    settings: dict[str, Any] = {"data": {"holdout": 0}, "train": {"steps": 1}}
    shop.train("done", **settings)
    return settings


def test_a_finished_run_is_refused(shop: Workplace, done_recipe: dict[str, Any]) -> None:
    run = shop.run("done")
    done = luthier("train", shop.recipe("done", **done_recipe))
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"✗ {run.path}: this run is finished\n"
        f"  → start over with --fresh, or choose another folder: --set output={run.path}-2\n"
    )


def test_a_changed_recipe_is_refused_by_the_names_of_its_changes(shop: Workplace, done_recipe: dict[str, Any]) -> None:
    run, recipe = shop.run("done"), shop.recipe("done", **done_recipe)
    before = run.recipe_file.read_bytes()
    again = f"  → start over with --fresh, or choose another folder: --set output={run.path}-2\n"
    one = luthier("train", recipe, "--set", "train.seed=1")
    assert (one.status, one.err) == (2, f"✗ {run.path}: holds a run of another recipe: train.seed differs\n{again}")
    two = luthier("train", recipe, "--set", "system=Be brief.", "--set", "prompts=[Who]")
    assert two.status == 2
    assert two.err == f"✗ {run.path}: holds a run of another recipe: data.system, prompts differ\n{again}"
    assert run.recipe_file.read_bytes() == before


def test_fresh_starts_over(shop: Workplace, done_recipe: dict[str, Any]) -> None:
    run = shop.run("done")
    run.evaluation_file.write_text("{}", encoding="utf-8")
    done = luthier("train", shop.recipe("done", **done_recipe), "--fresh", "--set", "train.seed=1")
    assert (done.status, done.err) == (0, "")
    assert run.read_recipe().train.seed == 1
    assert not run.evaluation_file.exists()
    assert [event["event"] for event in run.events()] == ["start", "plan", "step", "save", "finish"]


def test_fresh_keeps_the_old_run_until_the_new_one_can_begin(shop: Workplace, done_recipe: dict[str, Any]) -> None:
    run = shop.run("done")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    done = luthier("train", shop.recipe("done", **done_recipe), "--fresh", "--set", "data=missing.jsonl")
    assert done.status == 2
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
