"""A full disk, too little memory, numbers that are none: real faults in a real training, and the way on after them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from driver import PAIRS, Done, Workplace, adapter_bytes, events, finished, luthier, luthier_process, write_rows
from safetensors.torch import load_file, save_file
from tiny import make_model, make_tokenizer

from luthier.engine.instance import relative_error
from luthier.report import disk
from luthier.report.record import RunFolder, timeline
from luthier.training import plan
from luthier.training.trainer import LuthierTrainer

LIMITED = Path(__file__).with_name("limited.py")
SMALLER = "set train.gradient_checkpointing: true, lower data.max_length, or take a smaller model"
LIMITS_MEMORY = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
CUTS_FILES = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot cut files short")
SETTINGS: dict[str, Any] = {"adapter": {"dropout": 0.1}, "train": {"epochs": 3, "save_steps": 2}}


@pytest.fixture(scope="module")
def whole(shop: Workplace) -> RunFolder:
    """Never short of anything: 9 steps."""
    return shop.train("enough", **SETTINGS)


def limited(recipe: Path, limit: str, step: int) -> Done:
    # The C library gives back what is freed from this size on, instead of keeping it: else it would hide the limit.
    with mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": "16384"}):
        return finished(luthier_process("train", recipe, start=[str(LIMITED), limit, str(step)]))


def losses(run: RunFolder) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in timeline(run.events()) if e["event"] == "step"]


# The disk


def test_a_disk_too_small_for_the_whole_run_is_refused_before_the_first_step(shop: Workplace) -> None:
    with mock.patch.object(disk, "free_bytes", lambda path: 1_000_000):
        done = luthier("train", shop.recipe("roomless", **SETTINGS))
    run = shop.run("roomless")
    assert (done.status, done.err) == (
        2,
        f"✗ {run.path}: the run needs 3 MB on this disk, and 1 MB are free\n"
        "  → make room, or write elsewhere: --set output=FOLDER (save_total_limit and adapter.rank need less)\n",
    )
    assert not run.recipe_file.exists()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of 8 MB at `folder`; False where this process may not mount one."""
    folder.mkdir()
    mounted = (
        shutil.which("mount") is not None
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@CUTS_FILES
def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(
    shop: Workplace, whole: RunFolder, tmp_path: Path
) -> None:
    """A real small disk where one may be mounted; else the system cuts files short, which every writer meets alike."""
    with small_disk(tmp_path / "disk") as mounted:
        run = RunFolder(tmp_path / "disk" / "run")
        recipe = shop.recipe("full", output=str(run.path), **SETTINGS)
        ballast = tmp_path / "disk" / "ballast"
        done = limited(recipe, f"fill:{ballast}" if mounted else "file:20000", 3)
        assert done.status == 3, done.err
        problem, fix = done.err.splitlines()
        assert problem.startswith(f"✗ {run.path}: the disk is full: checkpoint-4 needs ")
        assert problem.endswith(" are free. What was saved before is whole")
        assert fix == "  → make room there: the same command goes on from the last checkpoint"
        assert [path.name for path in run.checkpoints_dir.iterdir()] == ["checkpoint-2"]
        ballast.unlink(missing_ok=True)

        done = luthier("train", recipe)
        assert (done.status, done.err) == (0, "")
        assert "\nGoing on from checkpoint-2\n" in done.out
        assert adapter_bytes(run) == adapter_bytes(whole)
        assert losses(run) == losses(whole)


# The memory


@pytest.fixture(scope="module")
def wide(shop: Workplace) -> dict[str, Any]:
    """A model whose activations are large beside the process itself: some 100 MB for a whole step at once."""
    folder = shop.folder / "wide-model"
    model = make_model("llama", hidden_size=256, intermediate_size=4096, num_hidden_layers=6)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return {
        "model": {"ref": str(folder)},
        "data": {"holdout": 0},
        "train": {"steps": 2, "batch_size": 20, "engine": "plain"},
    }


@LIMITS_MEMORY
def test_used_up_memory_halves_the_micro_batches(shop: Workplace, wide: dict[str, Any]) -> None:
    """In the rehearsal: the run is then the one that was asked for with micro-batches of that size."""
    done = limited(shop.recipe("short", **wide), f"memory:{120 << 20}", 0)
    assert done.status == 0, done.err
    run = shop.run("short")
    halved = [(event["step"], event["micro_batch_tokens"]) for event in events(run, "memory")]
    assert halved[0] == (0, 490)
    assert {step for step, _ in halved} == {0}
    assert done.err.splitlines()[0] == (
        "note: out of memory with 980 tokens at once: micro-batches of 490 tokens from here on. The steps stay the same"
    )
    other = shop.train("short-as-asked", **{**wide, "train": {**wide["train"], "micro_batch_tokens": halved[-1][1]}})
    assert adapter_bytes(run) == adapter_bytes(other)
    assert losses(run) == losses(other)


def assert_halved_in_the_third_step(done: Done, run: RunFolder, whole: RunFolder, tokens: int, halved: int) -> None:
    """Said, noted, and with the result of the whole run: to the last bit before, and then but for the order of sums."""
    note = f"note: out of memory with {tokens} tokens at once: micro-batches of {halved} tokens from here on. "
    assert (done.status, done.err) == (0, f"{note}The steps stay the same\n")
    assert [(event["step"], event["micro_batch_tokens"]) for event in events(run, "memory")] == [(2, halved)]
    found, expected = ([(e["loss"], e["grad_norm"]) for e in events(each, "step")] for each in (run, whole))
    assert found[:2] == expected[:2]
    assert len(found) == len(expected) == 3
    assert found[2] == pytest.approx(expected[2], rel=2e-6)
    weights, expected_weights = (load_file(each.adapter_dir / "adapter_model.safetensors") for each in (run, whole))
    for name, weight in expected_weights.items():  # AdamW divides by the gradient's size, its rounding included
        assert relative_error(weights[name], weight) < 1e-4, name


@LIMITS_MEMORY
def test_memory_used_up_within_a_step_changes_nothing_but_its_micro_batches(
    shop: Workplace, wide: dict[str, Any]
) -> None:
    """The third step of 12 rows takes some 300 MB at once and 150 in two parts, and has 220."""
    settings = {**wide, "train": {**wide["train"], "steps": 3, "batch_size": 12}}
    whole = shop.train("roomy", **settings)
    done = limited(shop.recipe("narrow", **settings), f"memory:{210 << 20}", 2)
    assert_halved_in_the_third_step(done, shop.run("narrow"), whole, 588, 294)


def test_memory_used_up_after_some_micro_batches_of_a_step(shop: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these have added to the gradient must not be added again."""
    monkeypatch.setitem(plan.MOST_TOKENS, "cpu", 100)
    settings: dict[str, Any] = {"data": {"holdout": 0}, "train": {"steps": 3, "batch_size": 12}}
    whole = shop.train("in-parts", **settings)
    begin = LuthierTrainer._begin

    def begin_in_vain(trainer: LuthierTrainer, batch: Any) -> None:
        begin(trainer, batch)
        begun = any(weight.grad is not None for weight in trainer.model.parameters())
        if begun and trainer.state.global_step == 2 and trainer.cut.tokens == 100:
            torch.empty(1 << 60)

    with mock.patch.object(LuthierTrainer, "_begin", begin_in_vain):
        done = luthier("train", shop.recipe("in-more-parts", **settings))
    assert_halved_in_the_third_step(done, shop.run("in-more-parts"), whole, 80, 40)


def test_graphs_go_before_micro_batches_are_halved(shop: Workplace) -> None:
    """A GPU's graphs hold memory of their own: without them the micro-batch may fit."""

    class Full:
        def backward(self, examples: Any, weight: float) -> Any:
            raise torch.OutOfMemoryError

    settings: dict[str, Any] = {"data": {"holdout": 0}, "train": {"steps": 3, "batch_size": 12}}
    whole = shop.train("without-graphs", **settings)
    with mock.patch("luthier.training.fit._graphs", lambda job: Full()):
        done = luthier("train", shop.recipe("graphs-too-large", **settings))
    run = shop.run("graphs-too-large")
    assert done.status == 0
    assert done.err == "note: out of memory: no CUDA graphs from here on. The steps stay the same\n"
    assert adapter_bytes(run) == adapter_bytes(whole)
    assert events(run, "memory") == []


@LIMITS_MEMORY
def test_what_the_recipe_asks_for_is_refused_where_it_does_not_fit(shop: Workplace, wide: dict[str, Any]) -> None:
    asked = {**wide, "train": {**wide["train"], "micro_batch_tokens": 100_000}}
    done = limited(shop.recipe("asked", **asked), f"memory:{60 << 20}", 0)
    assert (done.status, done.err) == (
        2,
        "✗ train.micro_batch_tokens: the memory does not hold a micro-batch of 20 rows (1,080 tokens)\n"
        f"  → leave it at auto, or {SMALLER}\n",
    )


@LIMITS_MEMORY
def test_a_row_that_fits_in_no_way_is_named(shop: Workplace, wide: dict[str, Any]) -> None:
    done = limited(shop.recipe("none-fits", **wide), f"memory:{4 << 20}", 0)
    assert done.status == 2
    assert done.err.splitlines()[-2:] == [
        f"✗ {shop.rows}, line 9: the memory does not hold this row alone (54 tokens)",
        f"  → {SMALLER}",
    ]


# Numbers that are none


@pytest.fixture(scope="module")
def poisoned(shop: Workplace) -> Path:
    """A model that knows no number for the character ^."""
    folder = shop.folder / "poisoned-model"
    shutil.copytree(shop.model, folder)
    weights = load_file(folder / "model.safetensors")
    (token,) = make_tokenizer()("^")["input_ids"]
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def one_bad_row(shop: Workplace, poisoned: Path) -> dict[str, Any]:
    """The ninth of nine rows: in two epochs of three steps it is met twice."""
    rows = write_rows(shop.folder / "poisoned.jsonl", [*PAIRS[:8], ("What is ^ in a very long question?", "A hat.")])
    return {
        "model": {"ref": str(poisoned)},
        "data": {"train": str(rows), "holdout": 0},
        "train": {"epochs": 2, "batch_size": 3},
    }


def test_a_step_without_a_number_is_not_applied_and_its_row_is_named(
    shop: Workplace, one_bad_row: dict[str, Any]
) -> None:
    rows = one_bad_row["data"]["train"]
    done = luthier("train", shop.recipe("one-nan", **one_bad_row))
    assert done.status == 0, done.err
    run = shop.run("one-nan")
    skipped = events(run, "skip")
    assert [event["rows"] for event in skipped] == [[f"{rows}, line 9"]] * 2
    assert done.err == "".join(
        f"note: step {event['step']}: its loss is not a finite number, so it is not applied. Rows: {rows}, line 9\n"
        for event in skipped
    )
    assert [step for step, loss in losses(run) if loss is None] == [event["step"] for event in skipped]
    assert all(
        bool(weight.isfinite().all()) for weight in load_file(run.adapter_dir / "adapter_model.safetensors").values()
    )


def test_read_late_as_on_a_gpu_it_is_the_same(shop: Workplace, one_bad_row: dict[str, Any]) -> None:
    """There the optimizer's kernel passes over the step, and its number is read while the next one is computed."""
    now, late = shop.run("read-now"), shop.run("read-late")
    assert luthier("train", shop.recipe("read-now", **one_bad_row)).status == 0
    with mock.patch("luthier.training.trainer.READ_LATE", ("cpu",)):
        assert luthier("train", shop.recipe("read-late", **one_bad_row)).status == 0
    assert adapter_bytes(late) == adapter_bytes(now)
    skipped = [[(event["step"], event["rows"]) for event in events(run, "skip")] for run in (now, late)]
    assert skipped[0] == skipped[1]
    assert len(skipped[0]) == 2


def test_several_in_a_row_end_the_training(shop: Workplace, poisoned: Path) -> None:
    odd = [(f"{question} ^ and so on", answer) for question, answer in PAIRS[3:]]
    rows = write_rows(shop.folder / "all-poisoned.jsonl", [*PAIRS[:3], *odd])
    settings = {
        "model": {"ref": str(poisoned)},
        "data": {"train": str(rows), "holdout": 0},
        "train": {"steps": 9, "batch_size": 8, "save_steps": 2},
    }
    done = luthier("train", shop.recipe("all-nan", **settings))
    run = shop.run("all-nan")
    assert done.status == 1
    assert done.err.splitlines()[-2:] == [
        "✗ step 3: its loss is not a finite number in 3 steps one after another: the training has diverged",
        "  → mend or remove the rows named above, or lower train.learning_rate, and train again with --fresh",
    ]
    assert [path.name for path in run.checkpoints_dir.iterdir()] == ["checkpoint-2"]
    assert run.state() == "failed at step 2"
