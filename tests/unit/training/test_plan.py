"""Steps, intervals and the micro-batch: figures that follow from rows, recipe and machine."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import add_adapter, make_model

from luthier.choice import Choice
from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine.engines import Engine, FlatEngine, PlainEngine
from luthier.recipe.schema import TrainSettings
from luthier.training import plan

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
    asked = settings(save_steps=30, eval_steps=10, gradient_checkpointing=True, micro_batch_tokens=512)
    assert plan.pick_save_steps(asked, 100, 10) == Choice(30, ASKED)
    assert plan.pick_eval_steps(asked, 100) == Choice(10, ASKED)
    assert plan.pick_checkpointing(asked) == Choice(True, ASKED)
    assert plan.pick_micro_batch(asked, None, [], "cpu") == Choice(512, ASKED)


def test_the_best_checkpoint_needs_a_loss_for_each() -> None:
    best = settings(load_best=True)
    assert plan.pick_save_steps(best, 100, 20) == Choice(20, "load_best needs a checkpoint at every evaluation")
    saving = settings(load_best=True, save_steps=30)
    assert plan.pick_eval_steps(saving, 100) == Choice(30, "load_best needs the loss of each checkpoint")
    assert plan.pick_save_steps(saving, 100, 30) == Choice(30, ASKED)


def test_gradient_checkpointing_is_off_unless_asked_for() -> None:
    assert plan.pick_checkpointing(settings()) == Choice(
        False, "it costs a third of the time; smaller micro-batches save memory for less"
    )


def test_memory_of_a_token() -> None:
    """Two layers of 16 · 64 + 5 · 96 values, and for each labelled token three rows of 400 float32 logits."""
    model = add_adapter(make_model("llama"))
    half_labelled = [example(3, 3), example(5, 5)]
    activations = 2 * (16 * 64 + 5 * 96)
    logits = 3 * 4 * 400 / 2
    assert plan.bytes_per_token(model, half_labelled, checkpointing=False) == 4 * activations + logits
    assert plan.bytes_per_token(model, half_labelled, checkpointing=True) == 4 * 2 * 64 + logits


def test_a_micro_batch_fills_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = add_adapter(make_model("llama")), [example(3, 3)]
    each = 4 * 2 * (16 * 64 + 5 * 96) + 3 * 4 * 400 / 2
    monkeypatch.setattr(plan, "available_bytes", lambda device: int(each * 200) + 1)
    assert plan.pick_micro_batch(settings(), model, rows, "cpu") == Choice(
        100, "half of the 0.0 GB free, at about 0.0 MB a token"
    )
    monkeypatch.setattr(plan, "available_bytes", lambda device: 10)
    assert plan.pick_micro_batch(settings(), model, rows, "cpu").value == 1
    monkeypatch.setattr(plan, "available_bytes", lambda device: 10**12)
    for device, most in (("cpu", 512), ("mps", 4096), ("cuda", 16384)):
        chosen = plan.pick_micro_batch(settings(), model, rows, device)
        assert chosen == Choice(most, f"more is no faster on {device}; about {each * most / 1e9:.1f} GB")


def test_tokens_of_an_epoch() -> None:
    """Four rows of 10 + 2, 4, 6 and 8 tokens, nine of them shared."""
    rows = [example(10, answer) for answer in (2, 4, 6, 8)]
    everything = settings(batch_size=4)

    def saved(engine: Engine, asked: TrainSettings, budget: int) -> Choice[str]:
        return plan.saved_tokens(engine, rows, asked, plan.steps_of(asked, rows), budget)

    assert saved(FlatEngine(), everything, 10**6) == Choice(
        "33 of 72", "60 are real tokens; the layers compute 54% fewer than padded batches of 4 rows"
    )
    assert saved(FlatEngine(share=False), everything, 10**6) == Choice(
        "60 of 72", "60 are real tokens; the layers compute 17% fewer than padded batches of 4 rows"
    )
    assert saved(PlainEngine(), everything, 10**6).value == "72 of 72"
    in_two = settings(batch_size=4, gradient_accumulation_steps=2)
    assert saved(PlainEngine(), in_two, 10**6).value == "64 of 72"  # 2 · 14 + 2 · 18
    assert saved(FlatEngine(), in_two, 10**6).value == "42 of 72"  # 9 + 1+2 + 1+4, 9 + 1+6 + 1+8
    assert saved(FlatEngine(), everything, 17).value == "51 of 72"  # 9 + 3 + 5, 9 + 7, 9 + 9
    by_tokens = settings(batch_tokens=100)
    assert saved(PlainEngine(), by_tokens, 10**6) == Choice(
        "72 of 72", "60 are real tokens; the layers compute 0% fewer than padded batches of a whole step"
    )
