from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.choice import Choice
from luthier.errors import RunError
from luthier.recipe.schema import Recipe
from luthier.report.record import RunFolder, list_runs, timeline

ASKED = {"model": "bundled:smollm2-135m-instruct", "data": "rows.json", "system": "你是甄嬛", "output": "runs/one"}


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({**ASKED, **changes})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "one").create()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def start_elsewhere(run: RunFolder, then: str) -> subprocess.Popen[str]:
    """Another process that holds the lock, after it said so."""
    code = f"from luthier.report.record import RunFolder\nwith RunFolder({str(run.path)!r}).lock():"
    code += f"\n print('held', flush=True)\n {then}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


# Making and opening


def test_files_have_the_names_of_the_architecture_page(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "one")
    files = [
        run.recipe_file,
        run.resolved_file,
        run.events_file,
        run.ledger_file,
        run.checkpoints_dir,
        run.adapter_dir,
        run.track_dir,
    ]
    assert " ".join(path.name for path in [*files, run.report_file, run.record_file]) == (
        "recipe.yaml resolved.json events.jsonl ledger.jsonl checkpoints adapter track report.html run.json"
    )
    assert not run.path.exists()


def test_create_takes_up_an_empty_folder_and_an_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").create()
    RunFolder(tmp_path / "a" / "b").create().write_recipe(recipe())
    RunFolder(tmp_path / "a" / "b").create()


def test_create_refuses_other_peoples_files(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(RunError) as caught:
        RunFolder(tmp_path).create()
    [problem] = caught.value.problems
    assert problem.where == str(tmp_path)
    assert problem.what == "the folder holds files that are not a run"
    assert problem.fix == f"give the run a folder of its own: --set output={tmp_path}-2"
    assert names(tmp_path) == {"holiday.jpg"}


def test_create_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    with pytest.raises(RunError, match="the folder cannot be made"):
        RunFolder(tmp_path / "one").create()
    with pytest.raises(RunError, match="the folder cannot be made"):
        RunFolder(tmp_path / "one" / "below").create()


def test_open_names_the_runs_beside(tmp_path: Path) -> None:
    RunFolder(tmp_path / "one").create().write_recipe(recipe())
    assert RunFolder.open(tmp_path / "one").read_recipe() == recipe()
    with pytest.raises(RunError, match="choose one of one in"):
        RunFolder.open(tmp_path / "oen")
    with pytest.raises(RunError, match="train one: luthier train"):
        RunFolder.open(tmp_path / "nowhere" / "oen")


def test_clear_leaves_what_is_not_ours(run: RunFolder) -> None:
    run.write_recipe(recipe())
    run.log({"event": "start", "step": 0, "resumed": False})
    run.write_record({})
    (run.checkpoints_dir / "checkpoint-1").mkdir(parents=True)
    run.adapter_dir.mkdir()
    run.track_dir.mkdir()
    (run.path / "my notes.txt").touch()
    run.clear()
    assert names(run.path) == {"my notes.txt"}


def test_list_runs_is_by_name_and_skips_other_folders(tmp_path: Path) -> None:
    for name in ("b", "a"):
        RunFolder(tmp_path / name).create().write_recipe(recipe())
    (tmp_path / "c").mkdir()
    assert [run.name for run in list_runs(tmp_path)] == ["a", "b"]
    assert list_runs(tmp_path / "nowhere") == []


# The recipe and the choices


def test_recipe_round_trip_of_every_setting(run: RunFolder) -> None:
    asked = recipe(
        data={"train": ["a.json", "b.csv"], "holdout": "5%", "columns": {"instruction": "问题"}},
        train={"learning_rate": 1e-05, "steps": 7, "warmup": 10.0},
        adapter={"alpha": 1e22, "targets": ["q_proj"]},
        prompts=["2e-4", "no", "null", "", " a\n\tb ", "- x: y # z", "🎻\u2028\x85\x07"],
    )
    run.write_recipe(asked)
    assert run.read_recipe() == asked
    assert "问题" in run.recipe_file.read_text(encoding="utf-8")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4), st.floats(1e-12, 1e12))
def test_recipe_round_trip_of_any_text_and_number(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], rate: float
) -> None:
    run = RunFolder(tmp_path_factory.getbasetemp() / "any").create()
    asked = recipe(prompts=texts, train={"learning_rate": rate})
    run.write_recipe(asked)
    assert run.read_recipe() == asked


@pytest.mark.parametrize(
    "address",
    [
        "https://me:hunter2@example.org/rows.json",
        "https://hunter2@example.org/rows.json",
        "https://example.org/rows.json?a=1&X-Amz-Signature=hunter2",
        "https://example.org/rows.json?sig=hunter2",
        "https://example.org/rows.json?api_key=hunter2",
    ],
)
def test_recipe_with_a_secret_is_not_written(run: RunFolder, address: str) -> None:
    with pytest.raises(RunError) as caught:
        run.write_recipe(recipe(data=["rows.json", address]))
    assert caught.value.problems[0].fix == "download the file first and give its path"
    assert "example.org" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert names(run.path) == set()


def test_recipe_with_an_ordinary_address_is_written(run: RunFolder) -> None:
    run.write_recipe(recipe(data="https://example.org/@me/rows.json?page=2"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("model: [", "not readable as YAML"),
        ("model: x\ndata: y\noutput: z\nrnak: 8\n", "rnak: Extra inputs are not permitted"),
        ("", "not a recipe of this Luthier"),
    ],
)
def test_damaged_recipe_is_named(run: RunFolder, text: str, what: str) -> None:
    run.recipe_file.write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=what):
        run.read_recipe()


def test_missing_recipe(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"there is no run here \(no recipe.yaml\)"):
        run.read_recipe()


def test_resolved_round_trip(run: RunFolder) -> None:
    assert run.read_resolved() == {}
    choices: dict[str, Choice[Any]] = {
        "model.dtype": Choice("bfloat16", "AMX 矩阵"),
        "train.eval_steps": Choice(24, "five times in a run"),
    }
    run.write_resolved(choices)
    assert run.read_resolved() == choices
    assert json.loads(run.resolved_file.read_bytes())[0] == {
        "setting": "model.dtype", "value": "bfloat16", "reason": "AMX 矩阵",
    }  # fmt: skip


# Events


def test_events_come_back_in_order_with_their_time(run: RunFolder) -> None:
    assert run.events() == []
    run.log({"event": "start", "step": 0, "time": 5.0})
    run.log({"event": "step", "step": 1, "loss": float("nan")})
    first, second = run.events()
    assert first == {"event": "start", "step": 0, "time": 5.0}
    assert second == {"event": "step", "step": 1, "loss": None, "time": second["time"]}
    assert second["time"] > 1_700_000_000


@pytest.mark.parametrize("torn", [b'{"event": "st', b'{"event": "step", "step": 2, "x": "\xe4\xbd', b"\0\0\0", b"17"])
def test_torn_last_line_is_left_out_and_cut_off_by_the_next_event(run: RunFolder, torn: bytes) -> None:
    run.log({"event": "step", "step": 1})
    with run.events_file.open("ab") as file:
        file.write(torn)
    assert [event["step"] for event in run.events()] == [1]
    run.log({"event": "step", "step": 3})
    assert [event["step"] for event in run.events()] == [1, 3]


def test_last_line_that_lacks_only_its_end_is_kept(run: RunFolder) -> None:
    run.events_file.write_bytes(b'{"event": "step", "step": 1}')
    assert [event["step"] for event in run.events()] == [1]
    run.log({"event": "step", "step": 2})
    assert [event["step"] for event in run.events()] == [1, 2]


def test_first_line_torn(run: RunFolder) -> None:
    run.events_file.write_bytes(b'{"ev')
    assert run.events() == []
    run.log({"event": "step", "step": 1})
    assert [event["step"] for event in run.events()] == [1]


def test_damage_in_the_middle_is_named(run: RunFolder) -> None:
    run.events_file.write_bytes(b'{"event": "step", "step": 1}\ngarbage\n{"event": "step", "step": 2}\n')
    with pytest.raises(RunError, match="line 2 is damaged"):
        run.events()


def step(number: int) -> dict[str, object]:
    return {"event": "step", "step": number}


def start(at: int, resumed: bool) -> dict[str, object]:
    return {"event": "start", "step": at, "resumed": resumed}


def test_timeline_drops_what_was_done_again() -> None:
    events = [start(0, False), step(1), step(2), step(3), start(2, True), step(3), step(4)]
    assert timeline(events) == [start(0, False), step(1), step(2), start(2, True), step(3), step(4)]


def test_timeline_of_a_run_that_began_again() -> None:
    assert timeline([start(0, False), step(1), start(0, False), step(1)]) == [start(0, False), step(1)]


# The record


def test_record_is_whole_or_not_there(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.record() is None
    run.write_record({"result": {"steps": 120, "train_loss": float("inf")}, "名": "甄嬛"})
    kept = {"result": {"steps": 120, "train_loss": None}, "名": "甄嬛"}
    assert json.loads(run.record_file.read_bytes()) == kept

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run.write_record({"result": {}})
    assert json.loads(run.record_file.read_bytes()) == kept
    assert names(run.path) == {"run.json"}


def test_damaged_record_is_named(run: RunFolder) -> None:
    run.record_file.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="not readable as JSON"):
        run.record()


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("result", "steps"), "many", "result.steps: Input should be a valid integer"),
        (("data", "ledger"), None, "data.ledger: Input should be a valid dictionary"),
        (("answers",), [{"prompt": 5}], "answers.0.prompt: Input should be a valid string; answers.0.system: Field"),
    ],
)
def test_a_forged_record_is_refused_by_field(
    finished: RunFolder, record: dict[str, Any], where: tuple[str, ...], value: Any, said: str
) -> None:
    inner = record
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    finished.write_record(record)
    with pytest.raises(RunError) as raised:
        finished.record()
    assert raised.value.problems[0].where == str(finished.record_file)
    assert said in raised.value.problems[0].what


# State and lock


def test_state_from_the_files(run: RunFolder) -> None:
    assert run.state() == "empty"
    run.write_recipe(recipe())
    assert run.state() == "not started"
    run.log(start(0, False))
    assert run.state() == "interrupted at step 0"
    run.log(step(7))
    assert run.state() == "interrupted at step 7"
    run.log({"event": "stop", "step": 8, "reason": "Ctrl-C"})
    assert run.state() == "stopped at step 8"
    run.log(start(8, True))
    run.log({"event": "fail", "step": 9, "reason": "out of memory"})
    assert run.state() == "failed at step 9"
    run.write_record({})
    assert run.state() == "finished"


def test_a_second_process_is_refused_and_told_whose_it_is(run: RunFolder) -> None:
    other = start_elsewhere(run, "import time; time.sleep(60)")
    try:
        assert run.state() == f"running (pid {other.pid})"
        with pytest.raises(RunError) as caught, run.lock():
            pass
        assert caught.value.problems[0].what == f"this run is in use by process {other.pid} on {socket.gethostname()}"
    finally:
        other.kill()
        other.wait()
    assert run.state() == "empty"
    with run.lock():
        assert run.state() == f"running (pid {os.getpid()})"


def test_lock_is_free_after_use_and_after_an_error(run: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock(), pytest.raises(RunError, match=f"in use by process {os.getpid()}"), run.lock():
        pass
    assert run.state() == "empty"
    assert RunFolder(run.path).create().state() == "empty"


def test_a_number_that_another_process_got_is_not_the_run(run: RunFolder) -> None:
    note = run.path / "running.json"
    note.write_text(json.dumps({"pid": os.getpid(), "started": 1.0, "host": socket.gethostname()}), encoding="utf-8")
    assert run.state() == "empty"


def test_a_run_on_another_machine_is_taken_at_its_word(run: RunFolder) -> None:
    note = run.path / "running.json"
    note.write_text(json.dumps({"pid": 41, "started": 1.0, "host": "atelier"}), encoding="utf-8")
    assert run.state() == "running (pid 41 on atelier)"
