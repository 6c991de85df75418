"""The flat batch against the padded batch of stock transformers: one loss, one gradient, for every family."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model

from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine import attention, engines
from luthier.engine.engines import Engine, FlatEngine, PlainEngine, set_attention
from luthier.engine.layout import FlatBatch, Layout, flatten, shared_prefix
from luthier.training.cut import Cut
from luthier.training.trainer import LuthierTrainer, StepDataset

FAMILIES = ["llama", "llama-tied", "llama-all-heads", "qwen2", "qwen3", "gemma3", "mistral", "phi3", "gpt2"]
SLIDING = ["gemma3", "mistral"]  # windows of 8 tokens: every sequence here is longer
BOUND = 1e-5
WRONG = 1e-3


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, 400, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def example(prompt: list[int], answer: list[int]) -> Example:
    return Example(prompt + answer, [IGNORE] * len(prompt) + answer, Source("rows.json", 1))


SYSTEM = tokens(11, 1)
QUESTION = SYSTEM + tokens(5, 2)
TWO_TURNS = Example(
    QUESTION + tokens(4, 3) + tokens(6, 4) + tokens(5, 5),
    [IGNORE] * 16 + tokens(4, 3) + [IGNORE] * 6 + tokens(5, 5),
    Source("rows.json", 2),
)
BATCHES: dict[str, tuple[list[Example], int]] = {
    "ragged with a shared prefix": (
        [
            example(SYSTEM + tokens(5, 10), tokens(7, 11)),
            example(SYSTEM + tokens(1, 12), tokens(1, 13)),
            example(SYSTEM + tokens(9, 14), tokens(20, 15)),
            TWO_TURNS,
        ],
        11,
    ),
    "equal prompts": ([example(QUESTION, tokens(count, 20 + count)) for count in (9, 1, 4)], 15),
    "one-token answers": ([example(SYSTEM + tokens(count, 30 + count), tokens(1, 40)) for count in (2, 6, 3)], 11),
    "nothing shared": ([example(tokens(count, 50 + count), tokens(3, 60)) for count in (12, 2, 25)], 0),
    "plain text": ([example([], tokens(count, 70 + count)) for count in (13, 2, 30)], 0),
    "one row": ([TWO_TURNS], 0),
}
RAGGED = BATCHES["ragged with a shared prefix"][0]


@functools.cache
def model_of(family: str) -> Any:
    return add_adapter(make_model(family))


def loss_and_gradients(model: Any, engine: Engine, examples: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    set_attention(model, engine)
    model.train()
    model.zero_grad()
    loss = engine.loss_sum(model, examples)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def errors(model: Any, engine: Engine, examples: list[Example]) -> tuple[float, float]:
    """Relative error of the loss, and the largest of all adapter matrices' gradients, against the padded batch."""
    expected, expected_gradients = loss_and_gradients(model, PlainEngine(), examples)
    loss, gradients = loss_and_gradients(model, engine, examples)
    worst = max(error(gradients[name], gradient) for name, gradient in expected_gradients.items())
    return abs(loss - expected) / expected, worst


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_flat_is_plain(family: str, batch: str, share: bool) -> None:
    examples, prefix = BATCHES[batch]
    assert shared_prefix(examples) == prefix
    loss_error, gradient_error = errors(model_of(family), FlatEngine(share=share), examples)
    assert loss_error < BOUND
    assert gradient_error < BOUND


def test_every_linear_layer_of_every_family_takes_part() -> None:
    """No gradient above was compared with nothing: each LoRA matrix has one, and it is not zero."""
    per_layer = {"phi3": 4, "gpt2": 4}  # they compute q, k and v at once, phi3 also gate and up
    for family in FAMILIES:
        _, gradients = loss_and_gradients(model_of(family), PlainEngine(), RAGGED)
        assert len(gradients) == 2 * 2 * per_layer.get(family, 7)
        assert all(gradient.norm() > 1e-3 for gradient in gradients.values())


# ---------------------------------------------------------------- the bound would notice a wrong mask


def _one_sequence(batch: FlatBatch) -> Layout:
    return Layout(0, (batch.layout.num_tokens,))


def _a_token_of_the_next_row(batch: FlatBatch) -> Layout:
    first, second, *rest = batch.layout.lengths
    return Layout(batch.layout.prefix, (first + 1, second - 1, *rest))


def _a_prefix_one_shorter(batch: FlatBatch) -> Layout:
    first, *rest = batch.layout.lengths
    return Layout(batch.layout.prefix - 1, (first + 1, *rest))


@pytest.mark.parametrize("wrong", [_one_sequence, _a_token_of_the_next_row, _a_prefix_one_shorter])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_layout_shows(
    family: str, wrong: Callable[[FlatBatch], Layout], monkeypatch: pytest.MonkeyPatch
) -> None:
    def flatten_wrongly(examples: list[Example], **options: Any) -> FlatBatch:
        batch = flatten(examples, **options)
        return dataclasses.replace(batch, layout=wrong(batch))

    monkeypatch.setattr(engines, "flatten", flatten_wrongly)
    loss_error, gradient_error = errors(model_of(family), FlatEngine(), RAGGED)
    assert loss_error > BOUND
    assert gradient_error > WRONG


def test_wrong_positions_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def flatten_wrongly(examples: list[Example], **options: Any) -> FlatBatch:
        batch = flatten(examples, **options)
        return dataclasses.replace(batch, position_ids=torch.arange(batch.layout.num_tokens)[None])

    monkeypatch.setattr(engines, "flatten", flatten_wrongly)
    loss_error, gradient_error = errors(model_of("llama"), FlatEngine(), RAGGED)
    assert loss_error > BOUND
    assert gradient_error > WRONG


@pytest.mark.parametrize("change", [None, -1, 1])
@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared"])
@pytest.mark.parametrize("family", SLIDING)
def test_a_wrong_window_shows(family: str, share: bool, change: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.causal_mask

    def wrong(queries: int, keys: int, window: int | None, device: Any) -> Any:
        changed = None if window is None or change is None else window + change
        return right(queries, keys, changed, device)

    monkeypatch.setattr(attention, "causal_mask", wrong)
    loss_error, gradient_error = errors(model_of(family), FlatEngine(share=share), RAGGED)
    assert loss_error > BOUND
    assert gradient_error > WRONG


# ---------------------------------------------------------------- a step is the same however it is cut


@pytest.mark.parametrize(
    "engine", [PlainEngine(), FlatEngine(share=False), FlatEngine()], ids=["plain", "flat", "shared"]
)
def test_a_step_does_not_depend_on_its_micro_batches(engine: Engine, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    model = model_of("llama")
    rows = [*RAGGED, *BATCHES["equal prompts"][0], *BATCHES["one-token answers"][0][:1]]
    assert len(rows) == 8
    plain_loss, plain_gradients = loss_and_gradients(model, PlainEngine(), rows)
    labels = sum(row.num_labels for row in rows)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    for budget, parts in ((10**6, None), (10**6, 2), (10**6, 8), (60, None), (1, None)):
        set_attention(model, engine)
        steps = StepDataset(rows, 8, seed=0)
        trainer = LuthierTrainer(model, arguments, engine, steps, [], cut=Cut(budget, parts))
        model.zero_grad()
        loss = trainer.training_step(model, rows)
        assert loss.item() == pytest.approx(plain_loss / labels, rel=1e-6)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert error(parameter.grad * labels, plain_gradients[name]) < BOUND
        assert trainer.trained_tokens == sum(len(row.input_ids) for row in rows)


# ---------------------------------------------------------------- bfloat16


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_in_bfloat16_flat_is_as_near_to_float32_as_plain_is(family: str, share: bool) -> None:
    """Both round differently; the flat batch must not round more."""
    half = add_adapter(make_model(family, dtype=torch.bfloat16))
    exact = add_adapter(make_model(family, dtype=torch.bfloat16).float())
    _, reference = loss_and_gradients(exact, PlainEngine(), RAGGED)
    distances = []
    for engine in (PlainEngine(), FlatEngine(share=share)):
        with torch.autocast("cpu", torch.bfloat16):
            _, gradients = loss_and_gradients(half, engine, RAGGED)
        total = torch.cat([(gradients[name] - reference[name]).flatten() for name in reference]).norm()
        distances.append(float(total / torch.cat([gradient.flatten() for gradient in reference.values()]).norm()))
    plain, flat = distances
    assert 1e-4 < plain < 0.2
    assert flat < 1.3 * plain
