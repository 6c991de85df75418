"""The whole benchmark on a tiny model, its options, and what it does with a contender that fails."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import contend
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.harness import Entry, race
from benchmarks.jobs import JOBS
from benchmarks.task import Task
from luthier.errors import InputError, Problem


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders run here: starting torch anew for each takes longer than all that this test looks at."""

    def call(command: list[str], **_: object) -> int:
        assert command[:3] == [sys.executable, "-m", "benchmarks.contend"]
        contend.main(*command[3:])
        return 0

    monkeypatch.setattr("benchmarks.harness.subprocess.call", call)


@pytest.mark.usefixtures("in_this_process")
def test_two_contenders_of_the_same_rows(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    given = [{"instruction": "What?" * (1 + i % 7), "input": "", "output": f"Wood {i}."} for i in range(16)]
    rows.write_text(json.dumps(given), encoding="utf-8")
    bench.bench(
        job=["huanhuan"],
        contender=["flat", "limit"],
        rows=rows,
        model=str(tiny_model),
        dtype="float32",
        device="cpu",
        steps=2,
        batch_size=4,
        padded_batch=2,
        baseline="flat",
        output=tmp_path,
    )
    [folder] = [path for path in tmp_path.iterdir() if path.name.startswith("20")]
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    [job] = found["jobs"]
    flat, limit = job["entries"]
    [ran], [counted] = flat["results"], limit["results"]
    assert (ran["rows"], len(ran["losses"]), ran["notes"]) == (8, 3, ["engine flat"])
    assert (ran["tokens"], ran["labelled"]) == (counted["tokens"], counted["labelled"])
    assert flat["figures"]["samples"] < limit["figures"]["samples"]
    assert "rows drawn from rows.json" in job["heading"]


def test_the_usual_contenders() -> None:
    assert bench.usual("cpu", peers=False) == ["tutorial@float32", "tutorial", "expert", "plain", "flat", "limit"]
    assert bench.usual("cpu", peers=True)[6:] == ["trl", "llamafactory"]
    assert bench.usual("cuda", peers=True)[6:] == ["trl", "llamafactory", "unsloth"]


def test_a_contender_runs_once_in_each_dtype() -> None:
    asked = ["tutorial@float32", "tutorial", "flat"]
    assert bench.line_up(asked, "bfloat16") == [("tutorial", "float32"), ("tutorial", "bfloat16"), ("flat", "bfloat16")]
    assert bench.line_up(asked, "float32") == [("tutorial", "float32"), ("flat", "float32")]


def test_unknown_names_are_refused_all_at_once() -> None:
    with pytest.raises(InputError) as caught:
        bench.line_up(["tutoral", "flat", "llama"], "float32")
    fix = "name one of: tutorial, expert, trl, llamafactory, unsloth, plain, flat, limit"
    what = "there is no such contender"
    assert caught.value.problems == (
        Problem("--contender tutoral", what, fix),
        Problem("--contender llama", what, fix),
    )
    with pytest.raises(InputError, match="--job huan: there is no such job"):
        bench.find("huan")


def test_ratios_refer_to_the_baseline_in_the_usual_dtype() -> None:
    lineup = [("tutorial", "float32"), ("tutorial", "bfloat16"), ("flat", "bfloat16")]
    assert bench.pick("tutorial", lineup) == "tutorial bfloat16"
    assert bench.pick("flat", lineup) == "flat bfloat16"
    assert bench.pick(None, lineup) == "tutorial bfloat16"
    assert bench.pick(None, lineup[2:]) == "flat bfloat16"
    with pytest.raises(InputError, match="--baseline expert: does not run"):
        bench.pick("expert", lineup)


def test_options_change_a_job() -> None:
    job = bench.changed(JOBS["huanhuan"], {"batch_size": 8, "steps": None, "model": "qwen3-0.6b"})
    assert (job.batch_size, job.padded_batch, job.steps, job.model) == (8, 8, 3, "qwen3-0.6b")
    with pytest.raises(InputError, match="20 rows a step cannot be cut into micro-batches of 16"):
        bench.changed(JOBS["huanhuan"], {"batch_size": 20})


def test_a_contender_that_fails_is_left_out_and_the_others_go_on(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both run as real processes, which know neither of them."""
    monkeypatch.setitem(CONTENDERS, "first", Contender("first", "has no file"))
    monkeypatch.setitem(CONTENDERS, "second", Contender("second", "has no file"))
    entries = [Entry("first", "float32"), Entry("second", "float32")]
    order = [entry.name for entry in race(replace(task, folder=str(tmp_path)), entries, repeat=2, peers=tmp_path)]
    assert order == ["first", "second"]
    assert [entry.trouble for entry in entries] == [
        f"KeyError: '{name}' ({tmp_path / f'{name}-float32-1' / 'output.log'})" for name in ("first", "second")
    ]


def test_runs_go_round_by_round(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.subprocess.call", lambda *_, **__: 0)
    monkeypatch.setattr("benchmarks.harness.Result.read", lambda file: file.parent.name)
    entries = [Entry("flat", "float32"), Entry("limit", "float32")]
    order = [entry.name for entry in race(replace(task, folder=str(tmp_path)), entries, repeat=2, peers=tmp_path)]
    assert order == ["flat", "limit", "flat", "limit"]
    assert entries[1].results == ["limit-float32-1", "limit-float32-2"]
