"""A run whose steps several processes compute: the same as with one, stopped, gone on with, and one of them gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from driver import Workplace, adapter_bytes, events, luthier, signals_in_step

from luthier.report.record import RunFolder
from luthier.training import plan
from luthier.training.trainer import LuthierTrainer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no other system copies a running process safely")

TWO: dict[str, Any] = {"train": {"epochs": 2, "save_steps": 2, "cpu_processes": 2}}
ONE: dict[str, Any] = {"train": {**TWO["train"], "cpu_processes": 1}}


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """Two, whatever the machine has, and micro-batches small enough that a share of a step has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        patch.setitem(plan.MOST_TOKENS, "cpu", 60)
        yield
    assert multiprocessing.active_children() == []


@pytest.fixture(scope="module")
def together(shop: Workplace) -> RunFolder:
    return shop.train("together", **TWO)


@pytest.fixture(scope="module")
def alone(shop: Workplace) -> RunFolder:
    return shop.train("alone", **ONE)


def figures(run: RunFolder) -> list[tuple[float, float]]:
    return [(event["loss"], event["grad_norm"]) for event in events(run, "step")]


def test_the_losses_and_gradients_are_those_of_one(together: RunFolder, alone: RunFolder) -> None:
    found, expected = figures(together), figures(alone)
    assert len(found) == len(expected) == 6
    assert found != expected  # sums of other parts, or nothing was computed beside
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-6)
    evaluated, of_one = ([e["heldout_loss"] for e in events(run, "evaluation")] for run in (together, alone))
    assert evaluated == pytest.approx(of_one, rel=2e-6)
    assert evaluated != of_one


def test_what_is_said_of_it(together: RunFolder, alone: RunFolder) -> None:
    """Tokens are counted in all processes, and planned for them."""
    choice = together.read_resolved()["train.cpu_processes"]
    assert (choice.value, choice.reason.startswith("the recipe asks for it; each with 1 of 2 threads and ")) == (
        2,
        True,
    )
    tokens, expected = ([event["tokens"] for event in events(run, "step")] for run in (together, alone))
    assert tokens == expected
    [planned] = events(together, "plan")
    assert planned["tokens"]["run_computed"] == sum(event["computed_tokens"] for event in events(together, "step"))


def test_stopped_within_a_step_it_goes_on_to_the_same_bytes(shop: Workplace, together: RunFolder) -> None:
    recipe = shop.recipe("stopped", **TWO)
    with signals_in_step(4, signal.SIGINT):
        done = luthier("train", recipe)
    assert done.status != 0
    assert "Ctrl-C: saving the last finished step" in done.out
    assert multiprocessing.active_children() == []
    assert luthier("train", recipe).status == 0
    run = shop.run("stopped")
    assert adapter_bytes(run) == adapter_bytes(together)
    assert figures(run) == figures(together)


def test_with_dropout_it_goes_on_to_the_same_bytes_too(shop: Workplace) -> None:
    """What each process drops follows from the run's own random numbers."""
    dropping = {**TWO, "adapter": {"dropout": 0.1}}
    whole, recipe = shop.train("dropping", **dropping), shop.recipe("dropping-stopped", **dropping)
    with signals_in_step(4, signal.SIGINT):
        assert luthier("train", recipe).status != 0
    assert luthier("train", recipe).status == 0
    assert adapter_bytes(shop.run("dropping-stopped")) == adapter_bytes(whole)
    alone = shop.train("dropping-alone", **ONE, adapter={"dropout": 0.1})
    assert figures(whole) != figures(alone)
    for ours, theirs in zip(figures(whole), figures(alone), strict=True):
        assert ours[0] == pytest.approx(theirs[0], rel=0.1)


def test_without_the_other_process_it_goes_on_alone(shop: Workplace, together: RunFolder) -> None:
    """Systems that run out of memory end a process, mostly."""
    original = LuthierTrainer.training_step

    def training_step(trainer: LuthierTrainer, *inputs: Any) -> Any:
        if trainer.state.global_step == 2 and trainer.workers is not None:
            [(process, _)] = trainer.workers._running
            os.kill(process.pid, signal.SIGKILL)
        return original(trainer, *inputs)

    with mock.patch.object(LuthierTrainer, "training_step", training_step):
        done = luthier("train", shop.recipe("left-alone", **TWO))
    assert (done.status, done.err) == (
        0,
        "note: a process of this run was ended from outside (exit code -9): one process from here on. "
        "The steps stay the same\n",
    )
    assert_same_after_two_steps(shop.run("left-alone"), together)


def test_too_little_memory_for_two_is_enough_for_one(shop: Workplace, together: RunFolder) -> None:
    first, begin, step = os.getpid(), LuthierTrainer._begin, LuthierTrainer.training_step
    third = multiprocessing.Value("b", False)  # whether the third step has begun

    def begin_in_vain(trainer: LuthierTrainer, batch: Any) -> None:
        begin(trainer, batch)
        if os.getpid() != first and third.value:
            torch.empty(1 << 60)

    def training_step(trainer: LuthierTrainer, *inputs: Any) -> Any:
        third.value = trainer.state.global_step == 2
        return step(trainer, *inputs)

    with mock.patch.multiple(LuthierTrainer, _begin=begin_in_vain, training_step=training_step):
        done = luthier("train", shop.recipe("short-of-memory", **TWO))
    run = shop.run("short-of-memory")
    assert (done.status, done.err) == (0, "note: out of memory: one process from here on. The steps stay the same\n")
    assert events(run, "memory") == []
    assert_same_after_two_steps(run, together)


def assert_same_after_two_steps(run: RunFolder, together: RunFolder) -> None:
    found, expected = figures(run), figures(together)
    assert found[:2] == expected[:2]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-6)


def test_what_speaks_against_it_is_said_before_the_first_step(shop: Workplace) -> None:
    settings = {"train": {"cpu_processes": 3, "gradient_accumulation_steps": 2}}
    done = luthier("train", shop.recipe("against", **settings))
    assert done.status == 2
    for why in ("gradient_accumulation_steps says how a step is cut", "there are 2 threads"):
        assert f"train.cpu_processes: {why}" in done.err


def test_a_model_without_rows_is_planned_for_one(shop: Workplace) -> None:
    """A config alone: no tokenizer makes rows of the data, so no layer can be timed on them."""
    folder = shop.folder / "config-alone"
    folder.mkdir()
    (folder / "config.json").write_bytes((shop.model / "config.json").read_bytes())
    done = luthier("plan", shop.recipe("planned", model={"ref": str(folder)}), "--json")
    assert done.status == 0, done.err
    choice = done.json["choices"]["train.cpu_processes"]
    assert choice == {"value": 1, "reason": "the model's layers cannot be timed"}
