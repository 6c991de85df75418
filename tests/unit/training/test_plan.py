"""Steps, intervals and the micro-batch: figures that follow from rows, recipe and machine."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.choice import Choice
from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine.engines import Engine, FlatEngine, PlainEngine
from luthier.errors import Problem, RecipeError
from luthier.recipe.schema import TrainSettings
from luthier.training import plan
from luthier.training.activations import Activations
from luthier.training.cut import Cut

ASKED = "the recipe asks for it"


def settings(**changed: Any) -> TrainSettings:
    return TrainSettings(**changed)


def example(prompt: int, answer: int, *, own: int = 0) -> Example:
    """`prompt` tokens, those but the last `own` the same in every row, and `answer` trained ones."""
    ids = [*range(3, 3 + prompt - own), *range(300, 300 + own), *range(100, 100 + answer)]
    return Example(ids, [IGNORE] * prompt + ids[prompt:], Source("rows.json", 1))


@pytest.mark.parametrize(
    ("rows", "changed", "steps"),
    [
        (48, {"epochs": 3}, 9),
        (48, {"epochs": 3, "batch_tokens": 100}, 15),  # 48 · 10 tokens
        (48, {"epochs": 3, "batch_size": 16}, 9),
        (49, {"epochs": 3, "batch_size": 16}, 12),
        (48, {"epochs": 0.5, "batch_size": 16}, 2),
        (1, {"epochs": 1, "batch_size": 16}, 1),
        (48, {"epochs": 3, "batch_size": 16, "steps": 5}, 5),
    ],
)
def test_steps(rows: int, changed: dict[str, Any], steps: int) -> None:
    asked = settings(**changed)
    assert plan.total_steps(asked, plan.steps_of(asked, [example(5, 5)] * rows)) == steps


def test_rows_of_a_step() -> None:
    rows = [example(10, answer) for answer in (2, 4, 6, 8, 10)]  # 80 tokens
    for asked, chosen in (
        (settings(), Choice(16, "the usual size for an adapter")),
        (settings(batch_size=3), Choice(3, ASKED)),
        (settings(batch_tokens=30), Choice(1.7, "on average: batch_tokens cuts an epoch into 3 steps of 26.7 tokens")),
    ):
        assert plan.pick_batch_size(asked, plan.steps_of(asked, rows)) == chosen


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (9, 1), (120, 12), (5000, 100)])
def test_ten_checkpoints_and_at_most_a_hundred_steps_lost(steps: int, every: int) -> None:
    chosen = plan.pick_save_steps(settings(), steps, 7)
    assert chosen == Choice(every, "ten checkpoints in a run, and at most 100 steps lost")


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (4, 1), (12, 3), (100, 20)])
def test_five_evaluations(steps: int, every: int) -> None:
    assert plan.pick_eval_steps(settings(), steps) == Choice(
        every, "five evaluations in a run, besides the one before it"
    )


def test_intervals_that_are_asked_for() -> None:
    asked = settings(save_steps=30, eval_steps=10, micro_batch_tokens=512)
    assert plan.pick_save_steps(asked, 100, 10) == Choice(30, ASKED)
    assert plan.pick_eval_steps(asked, 100) == Choice(10, ASKED)
    assert plan.pick_micro_batch(asked, FOUND, 0, "cpu") == Choice(512, ASKED)


def test_the_best_checkpoint_needs_a_loss_for_each() -> None:
    best = settings(load_best=True)
    assert plan.pick_save_steps(best, 100, 20) == Choice(20, "load_best needs a checkpoint at every evaluation")
    saving = settings(load_best=True, save_steps=30)
    assert plan.pick_eval_steps(saving, 100) == Choice(30, "load_best needs the loss of each checkpoint")
    assert plan.pick_save_steps(saving, 100, 30) == Choice(30, ASKED)


FOUND = Activations(layers=10, kept=10**6, recomputed=10**5, outside=10**6)
ROWS = [example(10, 90)] * 3 + [example(100, 900)]  # 1300 tokens, the longest row 1000


def checkpointing(device: str = "cpu", **asked: Any) -> Choice[int]:
    return plan.pick_checkpointing(settings(**asked), FOUND, plan.steps_of(settings(**asked), ROWS), device)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that are free where."""
    found = {"cpu": 10**12, "cuda": 10**12, "mps": 10**12}
    monkeypatch.setattr(plan, "available_bytes", found.__getitem__)
    return found


def test_layers_are_recomputed_only_where_memory_demands_it(free: dict[str, int]) -> None:
    """The longest row takes 11 GB, and half of what is free may be taken."""
    needs = "1,000 tokens at once take about 11.0 of"
    free["cpu"] = 22 * 10**9
    assert checkpointing() == Choice(0, f"recomputing costs a third of the time, and {needs} 22.0 GB free")
    free["cpu"] = 20 * 10**9
    assert checkpointing() == Choice(2, f"{needs} 20.0 GB free; 9.2 if 2 of 10 layers are recomputed")
    free["cpu"] = 10**9
    assert checkpointing() == Choice(10, f"{needs} 1.0 GB free; 2.0 if 10 of 10 layers are recomputed")


@pytest.mark.parametrize(
    ("asked", "device", "tokens"),
    [
        ({}, "cuda", "1,300"),  # all there are: 2048 would be useful
        ({"micro_batch_tokens": 1200}, "cpu", "1,200"),
        ({"micro_batch_tokens": 20}, "cpu", "1,000"),
        ({"gradient_accumulation_steps": 2}, "cpu", "1,100"),  # the two longest of four rows
    ],
)
def test_what_must_fit_at_once(asked: dict[str, Any], device: str, tokens: str, free: dict[str, int]) -> None:
    assert checkpointing(device, **asked).reason.startswith(
        f"recomputing costs a third of the time, and {tokens} tokens"
    )


@pytest.mark.parametrize(("asked", "layers"), [(True, 10), (False, 0), (1, 1), (3, 3), (10, 10)])
def test_checkpointing_that_is_asked_for(asked: bool | int, layers: int) -> None:
    """True is all layers, not one."""
    assert checkpointing(gradient_checkpointing=asked) == Choice(layers, ASKED)


def test_layers_that_the_model_does_not_have() -> None:
    with pytest.raises(RecipeError) as raised:
        checkpointing(gradient_checkpointing=11)
    assert raised.value.problems == (
        Problem(
            "train.gradient_checkpointing",
            "the model has 10 layers that can be recomputed, not 11",
            "leave it at auto, or lower it",
        ),
    )
    asked = settings(gradient_checkpointing=True)
    with pytest.raises(RecipeError, match="the model's code cannot recompute its layers"):
        plan.pick_checkpointing(asked, Activations(0, 0, 0, 5), plan.steps_of(asked, ROWS), "cpu")


def test_offloading_needs_a_gpu(free: dict[str, int]) -> None:
    asked = settings(offload_activations=True)
    with pytest.raises(RecipeError) as raised:
        plan.check_offloading(asked, "cpu")
    assert raised.value.problems[0] == Problem(
        "train.offload_activations",
        "moves activations from the GPU's memory to the host's, and this run computes on cpu",
        "leave it out",
    )
    plan.check_offloading(asked, "cuda")
    plan.check_offloading(settings(), "cpu")
    free["cuda"] = 10  # what is kept lies in the host's memory, so that is what counts
    assert plan.pick_micro_batch(asked, FOUND, 0, "cuda").value == 16384
    assert checkpointing("cuda", offload_activations=True).value == 0


def test_a_micro_batch_fills_half_of_the_free_memory(free: dict[str, int]) -> None:
    free["cpu"] = 2200 * 10**6
    assert plan.pick_micro_batch(settings(), FOUND, 0, "cpu") == Choice(
        100, "half of the 2.2 GB free, at about 11.0 MB a token"
    )
    assert plan.pick_micro_batch(settings(), FOUND, 5, "cpu").value == 169  # 6.5 MB a token
    free["cpu"] = 10
    assert plan.pick_micro_batch(settings(), FOUND, 0, "cpu").value == 1
    free["cpu"] = 10**12
    for device, most in (("cpu", 1024), ("mps", 4096), ("cuda", 16384)):
        chosen = plan.pick_micro_batch(settings(), FOUND, 0, device)
        assert chosen == Choice(most, f"more is no faster on {device}; about {11e6 * most / 1e9:.1f} GB")


def test_tokens_of_an_epoch() -> None:
    """Four rows of 10 + 2, 4, 6 and 8 tokens, each the beginning of the next; the last token of a row needs none."""
    rows = [example(10, answer) for answer in (2, 4, 6, 8)]
    everything = settings(batch_size=4)

    def saved(engine: Engine, asked: TrainSettings, budget: int) -> Choice[str]:
        return plan.saved_tokens(engine, rows, plan.steps_of(asked, rows), Cut.of(asked, budget, 1))

    assert saved(FlatEngine(), everything, 10**6) == Choice(
        "17 / 72",
        "60 are real tokens, 72% of them shared by rows or after the last label; "
        "the layers compute 76% fewer than padded batches of 4 rows",
    )
    assert saved(FlatEngine(share=False), everything, 10**6) == Choice(
        "56 / 72",
        "60 are real tokens, 7% of them shared by rows or after the last label; "
        "the layers compute 22% fewer than padded batches of 4 rows",
    )
    assert saved(PlainEngine(), everything, 10**6) == Choice(
        "72 / 72", "60 are real tokens; the layers compute 0% fewer than padded batches of 4 rows"
    )
    in_two = settings(batch_size=4, gradient_accumulation_steps=2)
    assert saved(PlainEngine(), in_two, 10**6).value == "64 / 72"  # 2 · 14 + 2 · 18
    assert saved(FlatEngine(), in_two, 10**6).value == "30 / 72"  # 13 + 17
    assert saved(FlatEngine(share=False), everything, 17).value == "56 / 72"
    by_tokens = settings(batch_tokens=100)
    assert saved(PlainEngine(), by_tokens, 10**6) == Choice(
        "72 / 72", "60 are real tokens; the layers compute 0% fewer than padded batches of a whole step"
    )
