from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opened_page import HOSTILE, SCRIPT, Page, policy_of_curves

from luthier.choice import Choice
from luthier.errors import RunError
from luthier.recipe.schema import Recipe
from luthier.report.languages import ENGLISH, LANGUAGES
from luthier.report.page import Verdict, verdict, write_report
from luthier.report.record import RunFolder


@pytest.mark.parametrize(
    ("before", "after", "text", "tone"),
    [
        (3.91, 2.87, "Held-out loss fell from 3.91 to 2.87 (−27 %)", "better"),
        (
            2.05,
            2.41,
            "Held-out loss rose from 2.05 to 2.41 (+18 %): on new rows this model does worse than before",
            "worse",
        ),
        (2.312, 2.308, "Held-out loss hardly changed: 2.31 before, 2.31 after", "open"),
        (2.0, 2.009, "Held-out loss hardly changed: 2.00 before, 2.01 after", "open"),
        (0.0, 0.0, "Held-out loss hardly changed: 0.00 before, 0.00 after", "open"),
        (2.05, None, "Held-out loss was 2.05 before training and has no value after it", "worse"),
        (
            None,
            None,
            "Training loss ended at 2.31; no rows were held out, so nothing shows how it does on new ones",
            "open",
        ),
    ],
)
def test_verdict(record: dict[str, Any], before: float | None, after: float | None, text: str, tone: Any) -> None:
    result = {**record["result"], "heldout_loss_before": before, "heldout_loss_after": after}
    assert verdict(result) == Verdict(text, tone)


def test_page_of_a_finished_run_says_it_all(finished: RunFolder, record: dict[str, Any]) -> None:
    file = write_report(finished)
    assert file == finished.report_file
    page = Page(file)
    for answer in record["answers"]:
        for text in (answer["prompt"], answer["base"], answer["tuned"], answer["reference"] or ""):
            assert text in page.text
    for sentence in (
        "Held-out loss fell from 3.91 to 2.87 (−27 %)",
        "bundled:smollm2-135m-instruct, tuned on workshop.jsonl with LoRA of rank 8.",
        "on 20 rows that were not trained before after held-out loss 3.91 2.87 perplexity 49.9 17.6 "
        "stops where answers end 0.4 % 93 %",
        "rows 640 steps 120 epochs 3 time 3m07s rows a second 10.2 tokens a second 642 peak memory 1.9 GB",
        "likelihood of each of its tokens, on average: 3 % before, 29 % after",
        "2 of 3 rows became more likely, 1 less.",
        "Measured on 3 of 20 rows.",
        "Most helped question before after 你是谁？ workshop.jsonl, line 31 5.00 3.00 "
        "Which wood? workshop.jsonl, line 5 4.00 2.50",
        "Most hurt question before after Who taught you? workshop.jsonl, line 9 3.00 3.50",
        "708 read 640 trained on 20 held out 36 duplicate 12 dropped 3 cut to length",
        "5 with the question of another row but another answer",
        "repeats an earlier row exactly 36",
        "workshop.jsonl, line 230 dropped field output is empty",
        "Half of the rows have up to 61 tokens, 95 % up to 142, the longest 388. 24,310 tokens are learned from.",
        "Shared beginnings were computed once: 71,000 tokens instead of 120,300.",
        "workshop.jsonl, line 1 · 420 tokens, prompt cut <user> Who· … me <end>",
        "train.learning_rate 0.0001",
        "model.dtype bfloat16 this processor multiplies bfloat16 4.1 times as fast as float32",
        "train.gradient_checkpointing false activations fit into memory",
        "cpu AMD EPYC 9R14, 2 cores memory 8.2 GB device cpu",
        "708 rows, alpaca, UTF-8, sha256 9f2c9f2c",
        "model revision 0123abcd",
        "result adapter/adapter_model.safetensors sha256 5ea15ea1",
        f"luthier train {finished.recipe_file} --set output={finished.path}-again",
        f"luthier chat {finished.path}",
        f"luthier merge {finished.path} -o workshop-merged",
        "Made by Luthier 0.1.0 on 20",
    ):
        assert sentence in page.line
    assert "step 120 · held-out 2.87" in page.attributes("data-tip")
    assert "48–63 tokens · 131 rows" in page.attributes("data-tip")


def test_trained_tokens_are_told_from_those_only_read(finished: RunFolder) -> None:
    spans = [attributes for tag, attributes in Page(write_report(finished)).elements if "title" in attributes]
    assert spans == [{"title": "1"}, {"title": "7 8"}, *({"class": "trained", "title": id} for id in ("9", "2"))]


def test_rows_helped_stand_above_the_line_and_rows_hurt_below_it(finished: RunFolder) -> None:
    """Of 2 nats up and 0.5 down: the line stands at four fifths."""
    page = Page(write_report(finished))
    assert {"class": "gains", "style": "--zero:80.0%", "role": "img", "aria-label": "Held-out rows one by one"} in [
        attributes for _, attributes in page.elements
    ]
    assert [
        (attributes["class"], attributes["style"])
        for tag, attributes in page.elements
        if tag == "i" and attributes.get("class") in ("up", "down")
    ] == [("up", "height:80.0%"), ("up", "height:60.0%"), ("down", "height:20.0%")]


def test_what_an_earlier_luthier_did_not_record_is_left_out(finished: RunFolder, record: dict[str, Any]) -> None:
    for key in ("heldout", "samples", "hashes", "revision"):
        del record[key]
    del record["data"]["repeated"]
    finished.write_record(record)
    headings = Page(write_report(finished)).headings
    assert headings == [
        "What to watch",
        "Loss",
        "Before and after",
        "What became of the rows",
        "Settings",
        "Where it was made, and how to repeat it",
        "How to go on",
    ]


def test_planned_and_actual(finished: RunFolder, record: dict[str, Any]) -> None:
    assert "Planned and actual" not in Page(write_report(finished)).headings
    record["plan"] = {"peak_memory_bytes": 2_123_000_000, "seconds": 168.66, "confidence": "high", "steps": None}
    finished.write_record(record)
    line = Page(write_report(finished)).line
    assert "planned actual off by peak memory 2.1 GB 1.9 GB +10 % time of the steps 2m49s 3m07s −10 %" in line


def test_page_in_chinese(finished: RunFolder) -> None:
    finished.write_resolved(
        {
            "train.batch_size": Choice(16, "the usual size for an adapter"),
            "train.other": Choice(1, "a reason of a later Luthier"),
        }
    )
    page = Page(write_report(finished, language=LANGUAGES["zh"]))
    assert ("html", {"lang": "zh-CN"}) in page.elements
    assert page.headings == [
        "需要留意",
        "损失",
        "训练前后的回答",
        "逐行看留出数据",
        "每一行的去向",
        "模型看到的内容",
        "设置",
        "训练环境，以及如何重现",
        "接下来",
    ]
    for sentence in (
        "留出集损失从 3.91 降到 2.87（−27 %）",
        "bundled:smollm2-135m-instruct，用 workshop.jsonl 微调，LoRA 的秩为 8。",
        "在没有训练过的 20 行上 训练前 训练后 留出集损失 3.91 2.87 困惑度 49.9 17.6 该停时停下的概率 0.4 % 93 %",
        "其中每个 token 的平均可能性：训练前 3 %，训练后 29 %",
        "3 行中，2 行变得更可能，1 行变得更不可能。",
        "708 读入 640 用于训练 20 留出 36 重复 12 未使用 3 截短",
        "train.batch_size 16 训练适配器的常用大小",
        "train.other 1 a reason of a later Luthier",
        "Which wood? workshop.jsonl 第 5 行 4.00 2.50",
        "workshop.jsonl 第 1 行 · 420 个 token",
        "处理器 AMD EPYC 9R14, 2 cores 内存 8.2 GB 设备 cpu torch 2.13.0+cpu",
        "由 Luthier 0.1.0 于 20",
    ):
        assert sentence in page.line
    assert "第 120 步 · 留出集损失 2.87" in page.attributes("data-tip")
    assert "workshop.jsonl 第 31 行 · 5.00 → 3.00" in page.attributes("data-tip")


def test_page_speaks_the_language_of_the_environment(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert "留出集损失从 3.91 降到 2.87" in Page(write_report(finished)).line
    assert "Held-out loss fell from 3.91 to 2.87" in Page(write_report(finished, language=ENGLISH)).line


def test_curves_are_switched_by_style_alone(finished: RunFolder) -> None:
    page = Page(write_report(finished))
    ids = [attributes["id"] for tag, attributes in page.elements if tag == "input"]
    assert ids == ["show-raw", "show-smooth", "show-heldout"]  # these events hold no tokens and no seconds
    assert {attributes["for"] for tag, attributes in page.elements if tag == "label"} == set(ids)
    css = finished.report_file.read_text(encoding="utf-8")
    assert all(f"#{each}:not(:checked) ~ .plot" in css for each in ids)


def test_page_stands_alone(finished: RunFolder) -> None:
    page = Page(write_report(finished))
    assert {name for _, attributes in page.elements for name in attributes} & {
        "src",
        "href",
        "srcset",
        "action",
    } == set()
    assert {tag for tag, _ in page.elements} & {"link", "iframe", "img", "object", "form"} == set()
    assert policy_of_curves() in page.attributes("content")
    assert page.scripts == [SCRIPT]
    source = finished.report_file.read_text(encoding="utf-8")
    assert "@import" not in source
    assert "url(" not in source
    assert len(source) < 100_000


def test_hostile_text_stays_text_wherever_it_comes_from(
    trained: RunFolder, recipe: dict[str, Any], record: dict[str, Any]
) -> None:
    record["answers"] = [dict.fromkeys(("prompt", "system", "reference", "base", "tuned"), HOSTILE)]
    record["heldout"]["measured"][0].update(where=HOSTILE, prompt=HOSTILE)
    record["samples"][0].update(where=HOSTILE, pieces=[[HOSTILE, True, [HOSTILE]]])
    record["hashes"] = {HOSTILE: HOSTILE}
    record["revision"] = HOSTILE
    record["environment"]["cpu"] = HOSTILE
    record["data"]["ledger"]["reasons"] = {HOSTILE: 1}
    record["data"]["ledger"]["examples"] = [dict.fromkeys(("where", "outcome", "reason"), HOSTILE)]
    record["data"]["files"][0]["path"] = HOSTILE
    record["luthier"] = HOSTILE
    trained.write_recipe(Recipe.model_validate({**recipe, "model": HOSTILE, "prompts": [HOSTILE]}))
    trained.write_resolved({HOSTILE: Choice(HOSTILE, HOSTILE)})
    calm = {tag for tag, _ in Page(write_report(trained)).elements}
    trained.write_record(record)
    page = Page(write_report(trained))
    assert page.text.count(HOSTILE) == 5 + 2 + 2 + 2 + 1 + 1 + 1 + 3 + 1 + 2 + 2 + 3
    assert page.scripts == [SCRIPT]
    assert "img" not in {tag for tag, _ in page.elements}
    assert {name for _, attributes in page.elements for name in attributes} & {"src", "onerror"} == set()
    assert calm <= {tag for tag, _ in page.elements}


def test_a_lone_surrogate_does_not_stop_the_page(finished: RunFolder, record: dict[str, Any]) -> None:
    record["answers"][0]["tuned"] = "half a sign: \ud83d"
    finished.write_record(record)
    assert finished.record() == record
    assert "half a sign: &#55357;" in write_report(finished).read_text(encoding="utf-8")


def test_page_of_a_stopped_run(stopped: RunFolder) -> None:
    page = Page(write_report(stopped))
    assert "Not finished: stopped at step 57" in page.text
    assert f"luthier train {stopped.recipe_file}" in page.text
    assert "step 48 · held-out 2.97" in page.attributes("data-tip")
    assert "Before and after" not in page.text
    assert "Made by Luthier on 20" in page.line


def test_page_of_a_run_before_its_first_event(started: RunFolder) -> None:
    page = Page(write_report(started))
    assert "Not finished: not started" in page.text
    assert "polyline" not in [tag for tag, _ in page.elements]


def test_held_out_loss_that_turned_is_named(started: RunFolder) -> None:
    for step, loss in ((0, 3.0), (20, 2.6), (40, 2.9)):
        started.log({"event": "evaluation", "step": step, "heldout_loss": loss})
    assert "Held-out loss was lowest at step 20 (2.60) and rose after it to 2.90:" in Page(write_report(started)).line


def test_held_out_loss_that_only_rose_has_no_turn(started: RunFolder) -> None:
    for step, loss in ((0, 2.0), (20, 2.6)):
        started.log({"event": "evaluation", "step": step, "heldout_loss": loss})
    assert "Held-out loss was lowest" not in Page(write_report(started)).line


def test_rows_that_the_ledger_cannot_explain_are_shown(finished: RunFolder, record: dict[str, Any]) -> None:
    record["data"]["ledger"]["read"] = 710
    finished.write_record(record)
    assert "12 dropped 2 unexplained" in Page(write_report(finished)).line


def test_commands_quote_a_folder_with_a_space(tmp_path: Path, recipe: dict[str, Any], record: dict[str, Any]) -> None:
    run = RunFolder(tmp_path / "my run").create()
    run.write_recipe(Recipe.model_validate(recipe))
    run.write_record(record)
    assert f'luthier chat "{run.path}" --compare' in Page(write_report(run)).line


def test_page_goes_where_asked_and_a_run_must_be_there(finished: RunFolder, tmp_path: Path) -> None:
    assert write_report(finished, tmp_path / "page.html") == tmp_path / "page.html"
    assert not finished.report_file.exists()
    with pytest.raises(RunError, match="there is no run here"):
        write_report(RunFolder(tmp_path / "nowhere"))
