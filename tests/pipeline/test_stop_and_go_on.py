"""A run that is stopped, killed or damaged at any point goes on to the same result, or says why it does not."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from driver import (
    PAIRS,
    WORSE_AFTER_ONE_STEP,
    Workplace,
    adapter_bytes,
    events,
    finished,
    luthier,
    luthier_process,
    signals_in_step,
    write_rows,
)
from safetensors.numpy import load_file
from torch.amp import GradScaler

from luthier.evaluation.heldout import sum_of_losses
from luthier.report.record import RunFolder, timeline
from luthier.training import plan

# Dropout draws from the random state, so only one that is restored exactly gives the same weights.
SETTINGS: dict[str, Any] = {"adapter": {"dropout": 0.1}, "train": {"epochs": 3, "save_steps": 2}}
GATED = Path(__file__).with_name("gated.py")


@pytest.fixture(scope="module")
def whole(shop: Workplace) -> RunFolder:
    """Never interrupted: 9 steps, three an epoch."""
    return shop.train("whole", **SETTINGS)


@pytest.fixture(scope="module")
def waiting(shop: Workplace) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Two trainings in processes of their own, started together as that takes longest: one waits after step 4 for the
    file `go`, the other after step 5 for ever."""
    processes = {
        name: luthier_process(
            "train", shop.recipe(name, **SETTINGS), start=[str(GATED), str(step), str(shop.folder / gate)]
        )
        for name, step, gate in (("ctrl-c", 4, "go"), ("killed", 5, "never"))
    }
    yield processes
    for process in processes.values():
        process.kill()


def wait_for_step(run: RunFolder, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while step not in [event["step"] for event in events(run, "step")]:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def killed(shop: Workplace, waiting: dict[str, subprocess.Popen[str]]) -> RunFolder:
    """Killed after step 5, with checkpoints of steps 2 and 4. Shared: tests go on with copies."""
    run, process = shop.run("killed"), waiting["killed"]
    wait_for_step(run, 5, process)
    process.kill()
    assert finished(process).status == -signal.SIGKILL
    return run


@pytest.fixture
def copied(shop: Workplace, killed: RunFolder, request: pytest.FixtureRequest) -> RunFolder:
    """The killed run, moved to a folder of its own."""
    run = shop.run(request.node.name)
    shutil.copytree(killed.path, run.path)
    return run


def go_on(shop: Workplace, run: RunFolder) -> tuple[str, str]:
    done = luthier("train", shop.recipe(run.name, **SETTINGS))
    assert done.status == 0, done.err
    return done.out, done.err


def assert_same(run: RunFolder, whole: RunFolder) -> None:
    """The same weights, the same loss at each step, the same figures but for time and memory."""
    assert adapter_bytes(run) == adapter_bytes(whole)
    for kind, figure in (("step", "loss"), ("step", "learning_rate"), ("evaluation", "heldout_loss")):
        found = [(e["step"], e[figure]) for e in timeline(run.events()) if e["event"] == kind]
        assert found == [(e["step"], e[figure]) for e in events(whole, kind)]
    results = [(each.record() or {})["result"] for each in (run, whole)]
    for result in results:
        for figure in ("seconds", "total_seconds", "samples_per_second", "tokens_per_second", "peak_memory_bytes"):
            del result[figure]
    assert results[0] == results[1]


def test_ctrl_c(shop: Workplace, waiting: dict[str, subprocess.Popen[str]], whole: RunFolder) -> None:
    run, process, recipe = shop.run("ctrl-c"), waiting["ctrl-c"], shop.recipe("ctrl-c", **SETTINGS)
    wait_for_step(run, 4, process)
    assert run.state() == f"running (pid {process.pid})"

    second = luthier("train", recipe)
    assert (second.status, second.out) == (2, "")
    assert second.err == (
        f"✗ {run.path}: this run is in use by process {process.pid} on {socket.gethostname()}\n"
        "  → wait for it, stop it with Ctrl-C there, or choose another output folder\n"
    )

    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    said = next(line for line in process.stdout if "Ctrl-C" in line)
    assert said == "Ctrl-C: saving the last finished step (once more to stop at once)\n"
    (shop.folder / "go").touch()
    done = finished(process)
    assert (done.status, done.err) == (
        3,
        f"✗ {run.path}: stopped by Ctrl-C at step 4 of 9, and saved\n  → the same command goes on from there\n",
    )
    assert run.state() == "stopped at step 4"
    assert sorted(path.name for path in run.checkpoints_dir.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert {path.name for path in run.path.iterdir()} == {
        "checkpoints",
        "events.jsonl",
        "ledger.jsonl",
        "recipe.yaml",
        "resolved.json",
        "run.lock",
    }

    out, err = go_on(shop, run)
    assert err == ""
    assert "\nGoing on from checkpoint-4\ngoing on from step 4 of 9\nstep 5/9 " in out
    assert_same(run, whole)


def test_steps_by_tokens_go_on_where_they_were(shop: Workplace) -> None:
    """Five steps an epoch, of 3 to 5 rows; stopped within the second epoch."""
    settings = {"adapter": SETTINGS["adapter"], "train": {"epochs": 2, "batch_tokens": 180, "batch_size": "auto"}}
    whole = shop.train("tokens", **settings)
    recipe = shop.recipe("tokens-stopped", **settings)
    with signals_in_step(7, signal.SIGTERM):
        assert luthier("train", recipe).status == 3
    done = luthier("train", recipe)
    assert (done.status, done.err) == (0, "")
    assert_same(shop.run("tokens-stopped"), whole)
    assert (whole.record() or {})["result"]["steps"] == 10


def test_the_loss_scale_of_float16_goes_on(shop: Workplace) -> None:
    """A scale at which gradients overflow is halved, and no step taken, until they do not."""
    settings = {**SETTINGS, "model": {"dtype": "float16"}}
    first = 2.0**21
    with mock.patch("luthier.training.trainer.GradScaler", partial(GradScaler, init_scale=first)):
        whole = shop.train("float16", **settings)
        recipe = shop.recipe("float16-stopped", **settings)
        with signals_in_step(4, signal.SIGTERM):
            assert luthier("train", recipe).status == 3
        stopped = shop.run("float16-stopped")
        norms = [event["grad_norm"] for event in events(stopped, "step")]
        scale = torch.load(stopped.checkpoints_dir / "checkpoint-3" / "scaler.pt")["scale"]
        assert scale == first / 2 ** norms.count(None) < first
        done = luthier("train", recipe)
    assert (done.status, done.err) == (0, "")
    assert_same(stopped, whole)
    norms = [event["grad_norm"] for event in events(whole, "step")]
    assert norms[0] is None and all(norm is None or 0.5 < norm < 5 for norm in norms)  # measured without the scale
    states = torch.load(whole.checkpoints_dir / "checkpoint-9" / "optimizer.pt")["state"].values()
    assert {float(state["step"]) for state in states} == {9 - norms.count(None)}
    assert {str(weight.dtype) for weight in load_file(whole.adapter_dir / "adapter_model.safetensors").values()} == {
        "float32"
    }


def test_killed(shop: Workplace, copied: RunFolder, whole: RunFolder) -> None:
    assert copied.state() == "interrupted at step 5"
    out, err = go_on(shop, copied)
    assert err == ""
    assert "\nGoing on from checkpoint-4\n" in out
    assert [event["step"] for event in events(copied, "step")] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    assert_same(copied, whole)


def cut_short(checkpoint: Path) -> None:
    os.truncate(checkpoint / "optimizer.pt", 100)


def changed(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "adapter_model.safetensors").write_bytes(content)


def unsealed(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


@pytest.mark.parametrize("tear", [cut_short, changed, unsealed])
def test_a_torn_checkpoint_is_passed_over(
    shop: Workplace, copied: RunFolder, whole: RunFolder, tear: Callable[[Path], None]
) -> None:
    tear(copied.checkpoints_dir / "checkpoint-4")
    out, err = go_on(shop, copied)
    assert err == "note: checkpoint-4 is incomplete, and removed\n"
    assert "\nGoing on from checkpoint-2\n" in out
    assert_same(copied, whole)


def test_without_a_whole_checkpoint_it_begins_anew(shop: Workplace, copied: RunFolder, whole: RunFolder) -> None:
    unsealed(copied.checkpoints_dir / "checkpoint-2")
    unsealed(copied.checkpoints_dir / "checkpoint-4")
    out, err = go_on(shop, copied)
    assert err == ("note: checkpoint-4 is incomplete, and removed\nnote: checkpoint-2 is incomplete, and removed\n")
    assert "oing on" not in out
    assert_same(copied, whole)


def test_a_torn_checkpoint_does_not_take_the_place_of_a_whole_one(shop: Workplace, copied: RunFolder) -> None:
    """With one checkpoint kept, the number of the torn one is the highest for a while."""
    shutil.rmtree(copied.checkpoints_dir / "checkpoint-2")
    (copied.checkpoints_dir / "checkpoint-4").rename(copied.checkpoints_dir / "checkpoint-8")
    unsealed(copied.checkpoints_dir / "checkpoint-8")
    with signals_in_step(4, signal.SIGTERM):
        luthier("train", shop.recipe(copied.name, **SETTINGS))
    assert sorted(path.name for path in copied.checkpoints_dir.iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_changed_rows_are_not_gone_on_with(shop: Workplace, killed: RunFolder) -> None:
    rows = shop.rows.read_text(encoding="utf-8")
    try:
        write_rows(shop.rows, PAIRS[:-1])
        done = luthier("train", shop.recipe("killed", **SETTINGS))
    finally:
        shop.rows.write_text(rows, encoding="utf-8")
    assert (done.status, done.err) == (
        2,
        f"✗ {killed.path}: the data files have changed since this run began, so which rows it held out is no longer "
        "known\n  → put them back as they were, or train again: luthier train RECIPE --fresh\n",
    )


@pytest.mark.parametrize("place", ["luthier.training.job.prepare", "luthier.training.finish.compare"])
def test_ctrl_c_before_and_after_the_training(shop: Workplace, whole: RunFolder, place: str) -> None:
    name = place.rpartition(".")[2]
    with mock.patch(place, side_effect=KeyboardInterrupt):
        done = luthier("train", shop.recipe(name, **SETTINGS))
    assert done.status == 3
    assert done.err.endswith(
        "stopped at once by Ctrl-C\n  → the same command goes on from the last checkpoint, if there is one\n"
    )
    out, err = go_on(shop, shop.run(name))
    assert err == ""
    assert ("The training is done; going on with what comes after it" in out) is (name == "compare")
    assert_same(shop.run(name), whole)
    for part in ("answers", "heldout", "samples", "hashes"):
        assert (shop.run(name).record() or {})[part] == (whole.record() or {})[part]


def test_killed_between_the_last_checkpoint_and_the_result(shop: Workplace) -> None:
    """The last of 4 steps is the first of its epoch: going on there must not add another."""
    settings: dict[str, Any] = {"data": {"holdout": 0}, "train": {"steps": 4}}
    reference = shop.train("four", **settings)
    recipe = shop.recipe("four-killed", **settings)
    with mock.patch("luthier.model.adapters.save", side_effect=KeyboardInterrupt):
        assert luthier("train", recipe).status == 3
    done = luthier("train", recipe)
    assert (done.status, done.err) == (0, "")
    run = shop.run("four-killed")
    assert adapter_bytes(run) == adapter_bytes(reference)
    assert [event["step"] for event in events(run, "step")] == [1, 2, 3, 4]
    assert [path.name for path in run.checkpoints_dir.iterdir()] == ["checkpoint-4"]
    assert (run.record() or {})["result"]["steps"] == 4


def test_early_stopping_keeps_its_patience(shop: Workplace) -> None:
    """Worse at 2, 3 and 4 than at 1: with a patience of 3 it ends at 4, also when it was stopped at 3."""
    settings: dict[str, Any] = {
        "train": {"steps": 8, "eval_steps": 1, "early_stopping_patience": 3, **WORSE_AFTER_ONE_STEP}
    }
    reference = shop.train("patient", **settings)
    with signals_in_step(4, signal.SIGTERM):
        assert luthier("train", shop.recipe("impatient", **settings)).status == 3
    run = shop.train("impatient", **settings)
    measured = [
        [(e["step"], e["heldout_loss"]) for e in timeline(r.events()) if e["event"] == "evaluation"]
        for r in (run, reference)
    ]
    assert measured[0] == measured[1]
    assert [step for step, _ in measured[0]] == [0, 1, 2, 3, 4]
    assert adapter_bytes(run) == adapter_bytes(reference)


@pytest.mark.parametrize(("evaluation", "step"), [(2, 4), (5, 9)], ids=["in the middle", "the last"])
def test_a_stop_in_an_evaluation_makes_up_for_it(shop: Workplace, whole: RunFolder, evaluation: int, step: int) -> None:
    """They come after steps 0, 2, 4, 6, 8 and 9; a long one does not delay the stop."""
    measured = iter(range(99))

    def stopped(*args: Any, **kwargs: Any) -> float:
        if next(measured) == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return sum_of_losses(*args, **kwargs)

    name = f"evaluation-{step}"
    with mock.patch("luthier.training.trainer.sum_of_losses", stopped):
        assert luthier("train", shop.recipe(name, **SETTINGS)).status == 3
    run = shop.run(name)
    assert run.state() == f"stopped at step {step}"
    go_on(shop, run)
    assert_same(run, whole)


def test_a_run_goes_on_with_what_it_began_with(
    shop: Workplace, whole: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today's machine would choose other threads and another micro-batch: the last bits would differ."""
    with signals_in_step(6, signal.SIGTERM):
        assert luthier("train", shop.recipe("elsewhere", **SETTINGS)).status == 3
    run = shop.run("elsewhere")
    began = run.resolved_file.read_bytes()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setitem(plan.MOST_TOKENS, "cpu", 40)
    try:
        _, err = go_on(shop, run)
    finally:
        torch.set_num_threads(1)
    assert err == (
        "note: 1 CPU threads, as at the beginning; today it would be 2 (OMP_NUM_THREADS is set), which would change "
        "the last bits of the result\n"
    )
    assert run.resolved_file.read_bytes() == began
    assert_same(run, whole)
