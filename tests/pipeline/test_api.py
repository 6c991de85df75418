"""`import luthier`: the same power as the command line, from Python."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from driver import Workplace, adapter_bytes

import luthier
from luthier.errors import RecipeError, RunError
from luthier.recipe.load import load_recipe
from luthier.report.record import RunFolder

QUICK: dict[str, Any] = {"data": {"holdout": 0}, "train": {"steps": 1}}


@pytest.fixture(scope="module")
def run(shop: Workplace) -> RunFolder:
    return luthier.train(shop.settings("from-python", **QUICK))


def test_a_dict_of_settings(shop: Workplace, run: RunFolder) -> None:
    assert run.path == shop.folder / "runs" / "from-python"
    assert run.state() == "finished"
    record = run.record()
    assert record is not None
    assert (record["result"]["steps"], record["result"]["rows"]) == (1, 24)


def test_a_file_and_a_recipe_give_the_same_run(shop: Workplace, run: RunFolder) -> None:
    file = shop.recipe("from-a-file", **QUICK)
    assert adapter_bytes(luthier.train(file)) == adapter_bytes(run)
    assert adapter_bytes(luthier.train(str(file), fresh=True)) == adapter_bytes(run)
    recipe = load_recipe(file, [f"output={shop.folder / 'runs' / 'from-a-recipe'}"])
    assert adapter_bytes(luthier.train(recipe)) == adapter_bytes(run)


def test_errors_are_raised_with_all_their_problems(shop: Workplace, run: RunFolder) -> None:
    with pytest.raises(RecipeError) as wrong:
        luthier.train({"model": "a/b", "data": 5})
    assert [str(problem) for problem in wrong.value.problems] == [
        "recipe, data: cannot be 5\n  fix: write a section of settings",
        "recipe, output: is missing\n  fix: add it: output: runs/first",
    ]
    with pytest.raises(RunError) as finished:
        luthier.train(shop.settings("from-python", **QUICK))
    assert str(finished.value) == (
        f"{run.path}: this run is finished\n"
        f"  fix: start over with --fresh, or choose another folder: --set output={run.path}-2"
    )


def test_a_short_recipe_with_a_relative_output(shop: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four lines, in a thread: a notebook's or a server's, where no signal can be caught."""
    monkeypatch.chdir(shop.folder)
    recipe = {"model": str(shop.model), "data": "rows.jsonl", "system": "Be brief.", "output": "short"}
    made: list[RunFolder] = []
    thread = threading.Thread(target=lambda: made.append(luthier.train({**recipe, "train": {"steps": 1}})))
    thread.start()
    thread.join()
    assert made[0].path == Path("short")
    assert RunFolder(shop.folder / "short").state() == "finished"
    assert made[0].read_recipe().data.system == "Be brief."
