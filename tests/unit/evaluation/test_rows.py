"""Held-out rows one by one, on a model whose adapter changes what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model

from luthier.data.conversation import Conversation, Message, Source
from luthier.data.render import IGNORE, Example, Renderer
from luthier.engine.engines import FlatEngine, PlainEngine, install
from luthier.evaluation import rows


def row(number: int, *turns: str, train: bool = True) -> Conversation:
    roles = ("user", "assistant") * len(turns)
    messages = [Message(role, text) for role, text in zip(roles, turns, strict=False)]  # type: ignore[arg-type]
    messages[-1] = Message(messages[-1].role, messages[-1].content, train=train)
    return Conversation(tuple(messages), Source("rows.jsonl", number, "line"))


def loss(model: Any, example: Example) -> float:
    """Cross-entropy a label, straight from the logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(example.labels[1:])))


@pytest.mark.parametrize("engine", [FlatEngine(), PlainEngine()], ids=["flat", "plain"])
@pytest.mark.parametrize("budget", [1, 10_000], ids=["row by row", "at once"])
def test_a_row_is_its_loss_a_label_of_base_and_tuned_model(tokenizer: Any, engine: Any, budget: int) -> None:
    model, renderer = add_adapter(make_model("llama")).eval(), Renderer(tokenizer)
    found = [row(1, "Who are you?", "I make violins."), row(2, "x" * 300, "Spruce.")]
    examples = [renderer.examples(each) for each in found]
    after = [loss(model, example) for (example,) in examples]
    with model.disable_adapter():
        before = [loss(model, example) for (example,) in examples]
    assert before != after
    install(model, engine)
    assert rows.measure_rows(model, engine, found, examples, budget=budget) == [
        {
            "where": f"rows.jsonl, line {index + 1}",
            "prompt": ["Who are you?", "x" * 200][index],
            "labels": examples[index][0].num_labels,
            "before": pytest.approx(before[index], rel=1e-5),
            "after": pytest.approx(after[index], rel=1e-5),
        }
        for index in range(2)
    ]


def test_many_rows_are_measured_spread_over_all(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS", 3)
    found = [row(number, "Why?", "So.") for number in range(1, 9)]
    examples = [Renderer(tokenizer).examples(each) for each in found]
    model, engine = add_adapter(make_model("llama")), PlainEngine()
    measured = rows.measure_rows(model, engine, found, examples, budget=64)
    assert [each["where"] for each in measured] == [f"rows.jsonl, line {number}" for number in (1, 4, 7)]


def test_a_row_without_labels_is_left_out_and_a_quoted_one_has_no_loss(tokenizer: Any) -> None:
    model, engine = add_adapter(make_model("llama")), PlainEngine()
    mute = Example([5, 6], [IGNORE, IGNORE], Source("r", 1))
    assert rows.measure_rows(model, engine, [row(1, "Why?", "So.")], [[mute]], budget=64) == []
    assert rows.base_and_tuned(model, engine, [[mute], []], budget=64) == [(None, None), (None, None)]


def test_of_several_turns_the_last_answer_is_quoted(tokenizer: Any) -> None:
    conversation = row(1, "Who?", "I.", "What wood?", "Spruce.")
    (example,) = Renderer(tokenizer).examples(conversation)
    (alone,) = rows.answer_alone(conversation, [example])
    assert alone.input_ids == example.input_ids
    assert tokenizer.decode([label for label in alone.labels if label != IGNORE]) == "Spruce.<|im_end|>"


def test_an_answer_that_is_not_trained_is_not_quoted(tokenizer: Any) -> None:
    conversation = row(1, "Who?", "I.", "What wood?", "Spruce.", train=False)
    assert rows.answer_alone(conversation, Renderer(tokenizer).examples(conversation)) == []
    assert rows.answer_alone(row(1, "Who?"), []) == []
