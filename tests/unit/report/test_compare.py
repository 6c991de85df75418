"""Several runs on one page."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from opened_page import HOSTILE, SCRIPT, Page, policy_of_curves

from luthier.choice import Choice
from luthier.recipe.schema import Recipe
from luthier.report.compare import write_comparison
from luthier.report.languages import LANGUAGES
from luthier.report.record import RunFolder


@pytest.fixture
def other(finished: RunFolder, recipe: dict[str, Any], record: dict[str, Any]) -> RunFolder:
    """A second run of the same rows with another rank, better, with two of the questions answered otherwise."""
    run = RunFolder(finished.path.parent / "rank4").create()
    recipe["adapter"]["rank"] = 4
    run.write_recipe(Recipe.model_validate({**recipe, "output": "runs/rank4"}))
    run.write_resolved(
        {"model.dtype": Choice("bfloat16", ""), "train.batch_size": Choice(16, ""), "threads": Choice(2, "")}
    )
    run.log({"event": "start", "step": 0, "total_steps": 60, "resumed": False})
    run.log({"event": "evaluation", "step": 0, "heldout_loss": 3.91})
    run.log({"event": "step", "step": 60, "epoch": 1.5, "loss": 2.0, "learning_rate": 1e-4})
    run.log({"event": "evaluation", "step": 60, "heldout_loss": 2.5})
    record["result"].update(steps=60, seconds=90, heldout_loss_after=2.5, end_probability_after=0.97, train_loss=2.0)
    record["answers"] = copy.deepcopy([record["answers"][0], record["answers"][3]])
    record["answers"][0].update(tuned="Maple, what else?", reference_loss={"base": 3.5, "tuned": 1.0})
    record["answers"][1].update(base="I am a program.", tuned="A luthier.")
    run.write_record(record)
    return run


def test_results_side_by_side(finished: RunFolder, other: RunFolder) -> None:
    file = write_comparison([finished, other])
    assert file == finished.path.parent / "comparison.html"
    page = Page(file)
    assert page.headings == ["Result", "Loss", "Settings that differ", "Answers side by side"]
    for sentence in (
        "2 runs compared rank4 has the lowest held-out loss: 2.50",
        "run rows steps time peak memory training loss held-out before held-out after perplexity stops where answers",
        "workshop finished 640 120 3m07s 1.9 GB 2.31 3.91 2.87 17.6 93 %",
        "rank4 finished 640 60 1m30s 1.9 GB 2.00 3.91 2.50 12.2 97 %",
    ):
        assert sentence in page.line
    assert "did not hold out the same rows" not in page.line


def test_curves_lie_over_each_other(finished: RunFolder, other: RunFolder) -> None:
    page = Page(write_comparison([finished, other]))
    assert "rank4 · step 60 · held-out 2.50" in page.attributes("data-tip")
    assert "workshop · step 120 · held-out 2.87" in page.attributes("data-tip")
    heldout = [found["points"] for tag, found in page.elements if tag == "polyline" and found["class"] == "heldout"]
    assert [points.split()[-1] for points in heldout if points] == [
        "100.0,56.5",
        "50.0,75.0",
    ]  # 2.87 and 2.50 of 2 to 4
    ids = [found["id"] for tag, found in page.elements if tag == "input"]
    assert ids == ["show-raw", "show-smooth", "show-heldout", "run-0", "run-1"]


def test_only_settings_that_differ_are_shown(finished: RunFolder, other: RunFolder) -> None:
    """An automatic one as what was chosen. Where a run says nothing of it there is a dash."""
    line = Page(write_comparison([finished, other])).line
    start = line.index("Settings that differ")
    assert line[start : line.index("Answers side by side")] == (
        "Settings that differ workshop rank4 data.max_length 4096 auto adapter.rank 8 4 train.batch_size auto 16 "
        "train.eval_steps 24 auto train.gradient_checkpointing false auto threads – 2 "
    )


def test_answers_to_the_same_questions(finished: RunFolder, other: RunFolder) -> None:
    line = Page(write_comparison([finished, other])).line
    assert line.endswith(
        "Each question that more than one of these runs answered. "
        "Which wood do you use for the back? You are a violin maker in Cremona. "
        "untouched model The back of a violin is usually made of wood. There are many kinds of wood that can be used. "
        "workshop Maple, signore, cut in winter when the sap is low. Nine years it waits under my roof. "
        "likelihood of the row’s own answer: 29 % "
        "rank4 Maple, what else? likelihood of the row’s own answer: 37 % "
        "the row’s own answer Maple from the Balkans, and I let it rest nine winters before I touch it. "
        # the untouched models differ here, so neither is shown as the one
        "Are you a computer? workshop A what, signore? rank4 A luthier."
    )


def test_other_held_out_rows_are_not_compared(finished: RunFolder, other: RunFolder) -> None:
    record: Any = other.record()
    record["heldout"]["measured"][0]["labels"] = 21  # another tokenizer, say
    other.write_record(record)
    line = Page(write_comparison([finished, other])).line
    assert "2 runs compared 2 runs compared These runs did not hold out the same rows" in line
    assert "has the lowest held-out loss" not in line


def test_with_a_run_that_is_not_finished(finished: RunFolder, recipe: dict[str, Any]) -> None:
    young = RunFolder(finished.path.parent / "young").create()
    young.write_recipe(Recipe.model_validate({**recipe, "output": "runs/young"}))
    young.log({"event": "start", "step": 0, "total_steps": 9, "resumed": False})
    young.log({"event": "evaluation", "step": 0, "heldout_loss": 3.5})
    page = Page(write_comparison([finished, young]))
    assert "young interrupted at step 0 – 0 – – – 3.50 – – –" in page.line
    assert page.headings == ["Result", "Loss", "Settings that differ"]
    (finished.record_file).unlink()
    assert "None of these runs has a held-out loss" in Page(write_comparison([finished, young])).line


def test_in_chinese(finished: RunFolder, other: RunFolder, tmp_path: Path) -> None:
    page = Page(write_comparison([finished, other], tmp_path / "page.html", LANGUAGES["zh"]))
    assert page.headings == ["结果", "损失", "不同的设置", "回答对照"]
    assert "2 次训练的比较 rank4 的留出集损失最低：2.50" in page.line
    assert "rank4 已完成 640 60" in page.line


def test_runs_of_one_name_are_told_apart_by_their_paths(finished: RunFolder, tmp_path: Path) -> None:
    twin = RunFolder(tmp_path / "elsewhere" / "workshop").create()
    twin.write_recipe(finished.read_recipe())
    page = Page(write_comparison([finished, twin]))
    assert [text for text in page.texts if text in (str(finished.path), str(twin.path))][:2] == [
        str(finished.path),
        str(twin.path),
    ]


def test_nothing_of_a_run_is_markup(finished: RunFolder, other: RunFolder) -> None:
    for run in (finished, other):
        record: Any = run.record()
        record["answers"] = [dict.fromkeys(("prompt", "system", "reference", "base", "tuned"), HOSTILE)]
        run.write_record(record)
    other.write_resolved({HOSTILE: Choice(HOSTILE, HOSTILE)})
    page = Page(write_comparison([finished, other]))
    assert page.text.count(HOSTILE) == 2 + 6
    assert page.scripts == [SCRIPT]
    assert "img" not in {tag for tag, _ in page.elements}
    assert page.attributes("content")[0] == policy_of_curves()
