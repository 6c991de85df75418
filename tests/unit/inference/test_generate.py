"""Answers are those of transformers' own `generate`, padded on the left, for base and tuned model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model, make_tokenizer

from luthier.data.conversation import Message
from luthier.data.render import Renderer
from luthier.inference.generate import answer_all, answer_with_and_without

RENDERER = Renderer(make_tokenizer())
TEXTS = ["Who are you?", "你是谁？", "What wood is the best for a violin? " * 3, *(f"Question {i}" for i in range(20))]
PROMPTS = [[Message("system", "You are a luthier."), Message("user", text)] for text in TEXTS]


def stock(model: Any, count: int) -> list[str]:
    rows = [RENDERER.prompt_ids(prompt) for prompt in PROMPTS]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": RENDERER.stop_ids, "pad_token_id": 2}
    output = model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:].tolist()
    ended = [row[: row.index(2)] if 2 in row else row for row in output]
    return [RENDERER.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ended]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3_5"])
def test_answers_of_both_models_are_those_of_stock_generation(family: str) -> None:
    model = add_adapter(make_model(family)).eval()
    tuned = stock(model, 10)
    with model.disable_adapter():
        base = stock(model, 10)
    assert tuned != base
    assert answer_with_and_without(model, RENDERER, PROMPTS, max_new_tokens=10) == (tuned, base)
    assert answer_all(model, RENDERER, PROMPTS, max_new_tokens=10) == tuned
    assert answer_all(model, RENDERER, [], max_new_tokens=10) == []
