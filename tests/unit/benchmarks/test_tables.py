"""Figures, ratios, the loss check, and the files that hold them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import Entry
from benchmarks.tables import COLUMNS, Figures, JobReport, figures, write
from benchmarks.task import Result

RESULT = Result(
    seconds=8.0, rows=16, tokens=800, labelled=200, losses=[3.5, 3.25], peak_bytes=2_000_000_000, same_labels=True
)


def report(*entries: Entry) -> JobReport:
    return JobReport("huanhuan", "Short rows.", entries, baseline="tutorial float32")


TUTORIAL = Entry("tutorial", "float32", [replace(RESULT, seconds=32.0, same_labels=False, notes=["its own prompt"])])
FLAT = Entry("flat", "float32", [RESULT])
LIMIT = Entry("limit", "float32", [replace(RESULT, seconds=4.0, losses=[], peak_bytes=0, same_labels=False)])


def test_figures_are_medians_of_the_runs() -> None:
    runs = [replace(RESULT, seconds=seconds) for seconds in (8.0, 4.0, 16.0)]
    assert figures(runs) == Figures(
        samples=2.0, tokens=100.0, labelled=25.0, peak_bytes=2e9, first_loss=3.5, last_loss=3.25
    )


def test_the_table() -> None:
    lost = Entry("trl", "float32", trouble="pip failed")
    waiting = Entry("plain", "float32")
    assert report(TUTORIAL, FLAT, LIMIT, lost, waiting).rows() == [
        ["tutorial", "float32", "0.5", "1.00 ×", "12%", "25", "6.25", "2.0 GB", "3.5000", "3.2500", "its own prompt"],
        ["flat", "float32", "2", "4.00 ×", "50%", "100", "25", "2.0 GB", "3.5000", "3.2500", ""],
        ["limit", "float32", "4", "8.00 ×", "100%", "200", "50", "–", "–", "–", ""],
        ["trl", "float32", "–", "–", "–", "–", "–", "–", "–", "–", "pip failed"],
    ]


def test_the_brief_table() -> None:
    assert report(TUTORIAL, FLAT, LIMIT).brief_rows()[1] == ["flat", "float32", "2", "4.00 ×", "50%", "2.0 GB"]


def test_no_limit_of_another_dtype_is_taken() -> None:
    assert report(TUTORIAL, replace(FLAT, dtype="bfloat16"), LIMIT).rows()[1][:5] == [
        "flat",
        "bfloat16",
        "2",
        "4.00 ×",
        "–",
    ]


def test_first_losses_agree() -> None:
    near = Entry("expert", "float32", [replace(RESULT, losses=[3.5001, 3.0])])
    good, text = report(TUTORIAL, near, FLAT, LIMIT).loss_check()
    assert good
    assert text == (
        "Loss check: expert float32, flat float32 begin at 3.50005, within 1.4e-05 of it. "
        "On other tokens: tutorial float32."
    )


def test_a_first_loss_that_is_off_is_named() -> None:
    off = Entry("plain", "float32", [replace(RESULT, losses=[3.6, 3.0])])
    same = Entry("expert", "float32", [RESULT])
    good, text = report(same, off, FLAT).loss_check()
    assert not good
    assert text == "Loss check FAILED: the first loss is 3.50000, but plain float32 3.60000."


def test_a_loss_that_is_no_number_is_off() -> None:
    broken = Entry("plain", "float32", [replace(RESULT, losses=[float("nan")])])
    assert not report(Entry("expert", "float32", [RESULT]), FLAT, broken).loss_check()[0]


def test_one_alone_has_nothing_to_agree_with() -> None:
    assert report(FLAT).loss_check() == (True, "Loss check: fewer than two trained the same tokens.")


def test_the_files(tmp_path: Path) -> None:
    write(tmp_path, {"date": "2026-11-24 12:00", "summary": "Two cores."}, [report(TUTORIAL, FLAT, LIMIT)])
    lines = (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()
    assert lines[:9] == [
        "# Benchmark of 2026-11-24 12:00",
        "",
        "Two cores.",
        "",
        "## huanhuan",
        "",
        "Short rows.",
        "",
        "Ratio: samples/s against tutorial float32.",
    ]
    assert lines[10] == "| " + " | ".join(COLUMNS) + " |"
    assert lines[13] == "| flat | float32 | 2 | 4.00 × | 50% | 100 | 25 | 2.0 GB | 3.5000 | 3.2500 |  |"
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["summary"] == "Two cores."
    [job] = found["jobs"]
    assert (job["job"], job["baseline"]) == ("huanhuan", "tutorial float32")
    assert job["entries"][1]["figures"]["samples"] == 2.0
    assert job["entries"][1]["results"][0]["losses"] == [3.5, 3.25]
