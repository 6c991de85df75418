"""`luthier watch`: a run seen from outside, before, while and after it trains."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from driver import Workplace, events, finished, luthier, luthier_process, signals_in_step
from terminal import CTRL_C, in_terminal

from luthier.recipe.schema import Recipe
from luthier.report.record import RunFolder

terminal_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no terminals that a test could open")
OF_EVENTS = re.compile(r"(step \d|held-out loss \S+ at|asked:|answer at|saved |going on|stopped at).*")


def lines(out: str) -> list[str]:
    """Those that events become."""
    return [line for line in out.splitlines() if OF_EVENTS.match(line)]


def test_a_finished_run_is_shown_as_its_training_was(shop: Workplace) -> None:
    trained = luthier("train", shop.recipe("watched", train={"epochs": 2}))
    watched = luthier("watch", shop.run("watched").path)
    assert (watched.status, watched.err) == (0, "")
    assert watched.out.splitlines() == [*lines(trained.out), f"{shop.run('watched').path}: finished"]
    assert len(lines(trained.out)) == 6 + 4 + 1 + 4 + 1  # steps, evaluations, the question, answers, a checkpoint
    kinds = [event["event"] for event in shop.run("watched").events()]
    assert kinds.count("sample") == kinds.count("evaluation") == 4
    assert {event["prompt"] for event in events(shop.run("watched"), "sample")} == {
        (shop.run("watched").record() or {})["answers"][0]["prompt"]
    }


def test_the_last_sample_begins_as_the_final_answer(shop: Workplace) -> None:
    run = shop.train("sampled", train={"epochs": 2}, prompts=["Who are you?"])
    [first, *_, last] = events(run, "sample")
    answer = (run.record() or {})["answers"][0]
    assert (first["prompt"], answer["prompt"]) == ("Who are you?", "Who are you?")
    assert (first["answer"], last["answer"]) == (answer["base"], answer["tuned"])
    assert 0 < first["tokens"] <= 8


def test_samples_change_no_bit_of_the_result(shop: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    with_samples = shop.train("with-samples", train={"epochs": 2})
    monkeypatch.setattr("luthier.training.fit.questions", lambda *_: [])
    without = shop.train("without-samples", train={"epochs": 2})
    assert events(without, "sample") == []
    name = "adapter/adapter_model.safetensors"
    assert (with_samples.path / name).read_bytes() == (without.path / name).read_bytes()


def test_an_answer_that_fails_ends_only_the_samples(shop: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr("luthier.training.sample.begin_answer", fail)
    done = luthier("train", shop.recipe("unsampled", train={"epochs": 1}))
    assert done.status == 0
    assert done.err == ("note: sample answers failed and are left out: no kernel for this. The training goes on.\n")
    assert events(shop.run("unsampled"), "sample") == []


def test_json_tells_where_a_stopped_run_is(shop: Workplace, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "stopped").create()
    written = [
        {"event": "start", "step": 0, "total_steps": 9, "resumed": False},
        {"event": "step", "step": 4, "loss": 2.5, "tokens_per_second": 10.0, "mfu": 0.5, "memory_bytes": 7},
        {"event": "save", "step": 4, "path": "checkpoints/checkpoint-4"},
        {"event": "stop", "step": 4, "reason": "Ctrl-C"},
    ]
    run.events_file.write_text("".join(json.dumps({"time": 1.0, **event}) + "\n" for event in written), "utf-8")
    done = luthier("watch", run.path, "--json")
    assert done.status == 3
    assert done.json == {
        "ok": False,
        "run": str(run.path),
        "state": "stopped at step 4",
        "step": 4,
        "total_steps": 9,
        "loss": 2.5,
        "heldout_loss": None,
        "tokens_per_second": 10.0,
        "mfu": 0.5,
        "memory_bytes": 7,
        "planned_bytes": None,
        "saved_step": 4,
        "prompt": None,
        "answer": None,
    }


@terminal_only
def test_from_before_a_run_to_its_hard_end_and_after_it(shop: Workplace, tmp_path: Path) -> None:
    run = shop.run("long")
    recipe = shop.recipe("long", train={"steps": 100_000, "eval_steps": 50, "save_steps": 20, "save_total_limit": 1})
    with in_terminal("watch", run.path) as watcher, in_terminal("watch", run.path, "--plain") as plain:
        watcher.until(r"Waiting for .*long to begin \(Ctrl-C ends the waiting\)")
        plain.until("Waiting")
        training = luthier_process("train", recipe)
        try:
            watcher.until(r"\d+/100000 +0 %  ETA")
            plain.until(r"step \d+/100000  loss [\d.]+  [\d,]+ tokens/s \([\d.]+ % of the matrix rate\)")

            watcher.press(CTRL_C)
            assert watcher.end() == 0
            assert "Watches no more; the run goes on." in watcher.text()
            assert watcher.output.count("\x1b[?25l") == watcher.output.count("\x1b[?25h") == 1  # the cursor is back
            assert training.poll() is None

            plain.until("saved checkpoints/checkpoint-20\n")
        finally:
            training.kill()
            training.communicate()
        assert plain.end() == 3
        assert "\x1b" not in plain.output
        last = run.events()[-1]["step"]
        assert plain.text().splitlines()[-1] == f"{run.path}: interrupted at step {last}"

    with run.events_file.open("ab") as file:
        file.write(b'{"event": "step", "st')  # what a kill in the middle of a line leaves
    again = luthier("watch", run.path)
    assert (again.status, again.err) == (3, "")
    assert again.out.splitlines()[-1] == f"{run.path}: interrupted at step {last}"


@terminal_only
def test_a_run_in_another_process_to_its_end(shop: Workplace) -> None:
    run = shop.run("seen")
    with in_terminal("watch", run.path) as watcher:
        watcher.until("Waiting")
        assert finished(luthier_process("train", shop.recipe("seen", train={"epochs": 2}))).status == 0
        assert watcher.end() == 0
    title, bar, *facts, end = watcher.last_drawn()
    assert title == f"seen  {shop.model}"
    assert re.fullmatch(r"━+ +6/6  100 %  trained", bar)
    assert [fact.split("  ")[0] for fact in facts if not fact.startswith(" ")] == [
        "loss", "held-out loss", "speed", "memory", "checkpoint", "question", "at step 0", "at step 6",
    ]  # fmt: skip
    assert end == f"{run.path}: finished"


@terminal_only
def test_the_view_of_the_training_itself_and_plain_lines_in_its_place(shop: Workplace) -> None:
    for option in ([], ["--plain"]):
        with in_terminal("train", shop.recipe("own", train={"epochs": 1}), "--fresh", *option) as terminal:
            assert terminal.end() == 0
        assert bool(re.search(r"3/3  100 %", terminal.text())) == (not option)
        assert bool(lines(terminal.text())) == bool(option)


def test_a_run_that_went_on_and_a_line_that_is_garbled(shop: Workplace) -> None:
    recipe, run = shop.recipe("went-on", train={"epochs": 2}), shop.run("went-on")
    with signals_in_step(3, signal.SIGTERM):
        first = luthier("train", recipe)
    stopped = luthier("watch", run.path)
    assert (first.status, stopped.status) == (3, 3)
    end = ["stopped at step 2: SIGTERM", f"{run.path}: stopped at step 2"]
    assert stopped.out.splitlines() == [*lines(first.out), *end]
    second = luthier("train", recipe)
    whole = run.events_file.read_bytes().splitlines(keepends=True)
    run.events_file.write_bytes(b"".join([*whole[:3], b"\0\0 garbage\n", *whole[3:]]))
    done = luthier("watch", run.path)
    assert done.err == f"note: {run.events_file}: damaged lines were passed over, 1 in all\n"
    expected = [*lines(first.out), end[0], *lines(second.out), f"{run.path}: finished"]
    assert done.out.splitlines() == expected
    assert "going on from step 2 of 6" in expected


@terminal_only
def test_a_run_that_is_refused_before_its_first_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "refused").create()
    run.write_recipe(Recipe.model_validate({"model": "m", "data": {"train": "rows.jsonl"}, "output": str(run.path)}))
    with in_terminal("watch", run.path) as watcher:
        watcher.until("Waiting")
        with run.lock():
            watcher.until("before the first step …")
        assert watcher.end() == 3
    assert watcher.last_drawn()[-1] == f"{run.path}: not started"
