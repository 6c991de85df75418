"""`luthier runs` and `luthier report`, as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from luthier import console
from luthier.cli.report import report
from luthier.cli.runs import runs
from luthier.errors import RunError
from luthier.recipe.schema import Recipe
from luthier.report.record import RunFolder


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_json", False)
    monkeypatch.setenv("COLUMNS", "140")


def luthier(command: Callable[..., None], *arguments: object) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def cells(output: str) -> list[list[str]]:
    """The rows of a printed table, without its rules."""
    lines = [line for line in output.splitlines() if "│" in line or "┃" in line]
    return [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]


def test_runs_as_a_table(finished: RunFolder, recipe: dict[str, Any]) -> None:
    going = RunFolder(finished.path.parent / "young").create()
    going.write_recipe(Recipe.model_validate(recipe))
    going.log({"event": "start", "step": 0, "total_steps": 9, "resumed": False})
    going.log({"event": "evaluation", "step": 0, "heldout_loss": 3.5})
    broken = RunFolder(finished.path.parent / "zebra").create()
    broken.recipe_file.write_text("{", encoding="utf-8")
    done = luthier(runs, finished.path.parent)
    assert done.exit_code == 0
    assert cells(done.output)[:3] == [
        ["run", "model", "rows", "held-out loss", "time", "state"],
        ["workshop", "bundled:smollm2-135m-instruct", "640", "3.91 → 2.87", "3m07s", "finished"],
        ["young", "bundled:smollm2-135m-instruct", "", "3.50 → –", "", "interrupted at step 0"],
    ]
    assert cells(done.output)[3][0] == "zebra"
    assert cells(done.output)[3][5].startswith("unreadable: not readable as YAML")


def test_runs_as_json(stopped: RunFolder) -> None:
    done = luthier(runs, stopped.path.parent, "--json")
    assert json.loads(done.stdout) == {
        "ok": True,
        "folder": str(stopped.path.parent),
        "runs": [
            {
                "run": "workshop",
                "path": str(stopped.path),
                "model": "bundled:smollm2-135m-instruct",
                "rows": None,
                "heldout_loss_before": 3.91,
                "heldout_loss_after": 2.97,
                "seconds": None,
                "state": "stopped at step 57",
            }
        ],
    }


def test_no_runs(tmp_path: Path) -> None:
    expected = f"No runs in {tmp_path}. Train one: luthier train recipe.yaml, or luthier demo\n"
    assert luthier(runs, tmp_path).output == expected
    assert json.loads(luthier(runs, tmp_path, "--json").stdout)["runs"] == []


def test_report_writes_the_page_and_says_where(finished: RunFolder) -> None:
    done = luthier(report, finished.path)
    assert done.output == f"Open it in a browser: {finished.report_file.resolve().as_uri()}\n"
    assert "Held-out loss fell" in finished.report_file.read_text(encoding="utf-8")
    assert json.loads(luthier(report, finished.path, "--json").stdout) == {
        "ok": True,
        "report": str(finished.report_file.resolve()),
    }


def test_report_in_the_language_and_place_asked_for(finished: RunFolder, tmp_path: Path) -> None:
    page = tmp_path / "seite.html"
    done = luthier(report, finished.path, "--lang", "zh", "-o", page)
    assert done.output == f"Open it in a browser: {page.as_uri()}\n"
    assert "留出集损失从 3.91 降到 2.87" in page.read_text(encoding="utf-8")
    assert not finished.report_file.exists()


def test_report_of_several_runs_compares_them(finished: RunFolder, recipe: dict[str, Any]) -> None:
    other = RunFolder(finished.path.parent / "other").create()
    other.write_recipe(Recipe.model_validate({**recipe, "output": "runs/other"}))
    page = finished.path.parent / "comparison.html"
    done = luthier(report, finished.path, other.path)
    assert done.output == f"Open it in a browser: {page.resolve().as_uri()}\n"
    assert "2 runs compared" in page.read_text(encoding="utf-8")
    luthier(report, finished.path, finished.path)  # one run, named twice
    assert finished.report_file.exists()


def test_every_run_that_is_none_is_named(finished: RunFolder, tmp_path: Path) -> None:
    error: Any = luthier(report, finished.path, tmp_path / "a", tmp_path / "b").exception
    assert [problem.where for problem in error.problems] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_page_that_cannot_be_written(finished: RunFolder, tmp_path: Path) -> None:
    page = tmp_path / "nowhere" / "page.html"
    error = luthier(report, finished.path, "-o", page).exception
    assert isinstance(error, RunError)
    what = "the page cannot be written: No such file or directory"
    assert [vars(problem) for problem in error.problems] == [
        {"where": str(page), "what": what, "fix": "name another place: -o FILE"}
    ]


def test_report_of_no_run(tmp_path: Path) -> None:
    assert isinstance(luthier(report, tmp_path).exception, RunError)
