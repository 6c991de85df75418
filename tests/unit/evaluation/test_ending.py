"""Where answers end, and how probable the model thinks that end."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import add_adapter, make_model

from luthier.data.conversation import Conversation, Message, Source
from luthier.data.render import IGNORE, Example, Renderer
from luthier.evaluation.ending import end_probability, ends

ROW = Conversation(
    (
        Message("user", "Who are you?"),
        Message("assistant", "I make violins."),
        Message("user", "What wood?"),
        Message("assistant", "Spruce."),
    ),
    Source("rows.jsonl", 1),
)


def test_ends_are_the_last_labels_of_turns() -> None:
    example = Example([7, 7, 8, 9, 2, 7, 7, 2, 2], [IGNORE, IGNORE, 8, 9, 2, IGNORE, 7, 2, 2], Source("r", 1))
    assert ends(example, 2) == [4, 8]
    assert ends(Example([2, 7], [2, 7], Source("r", 1)), 2) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_the_probability_of_all_stop_tokens_before_each_end(tokenizer: Any, family: str) -> None:
    model, renderer = add_adapter(make_model(family)).train(), Renderer(tokenizer, stop_ids=[0])
    (example,) = renderer.examples(ROW)
    assert renderer.stop_ids == [0, 2]
    import torch

    with torch.no_grad():
        probabilities = model.eval()(input_ids=torch.tensor([example.input_ids])).logits[0].softmax(-1)
    model.train()
    expected = [float(probabilities[place - 1, [0, 2]].sum()) for place in ends(example, 2)]
    assert len(expected) == 2
    assert end_probability(model, renderer, [example]) == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert model.training


def test_without_an_end_there_is_no_probability(tokenizer: Any) -> None:
    piece = Example([5, 6], [5, 6], Source("r", 1))
    assert end_probability(add_adapter(make_model("llama")), Renderer(tokenizer), [piece]) is None
    assert end_probability(add_adapter(make_model("llama")), Renderer(tokenizer), []) is None
