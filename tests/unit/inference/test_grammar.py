"""Answers held to a schema, by random logits: what comes out is JSON that the schema describes."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from tiny import make_tokenizer
from transformers import ByT5Tokenizer

from luthier.data.render import Renderer
from luthier.errors import InputError
from luthier.inference.grammar import hold_to
from luthier.inference.sample import Sampling, choose, random_numbers

VIOLIN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "wood": {"enum": ["spruce", "maple", "云杉"]},
        "year": {"type": "integer", "minimum": 1650, "maximum": 1750},
        "strings": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["wood", "year", "strings"],
    "additionalProperties": False,
}
VOCABULARY = 410  # a model may give more logits than there are tokens


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer())


def answer(renderer: Renderer, schema: dict[str, Any], seed: int, temperature: float) -> str:
    grammar, random = hold_to(schema, renderer, VOCABULARY), random_numbers(seed)
    logits, ids = torch.Generator().manual_seed(seed), []
    for _ in range(300):
        row = torch.randn(1, VOCABULARY, generator=logits) * 5
        (token,) = choose(row, [Sampling(temperature=temperature)], [random], [grammar])
        grammar.take(token.id)
        if token.id in renderer.stop_ids:
            return str(renderer.tokenizer.decode(ids))
        ids.append(token.id)
    raise AssertionError("it never ended")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_whatever_the_model_says_it_is_what_the_schema_describes(renderer: Renderer, temperature: float) -> None:
    said = [answer(renderer, VIOLIN, seed, temperature) for seed in range(20)]
    assert len(set(said)) > 10
    for text in said:
        violin = json.loads(text)
        assert list(violin) == ["wood", "year", "strings"]
        assert violin["wood"] in ("spruce", "maple", "云杉")
        assert 1650 <= violin["year"] <= 1750
        assert 1 <= len(violin["strings"]) <= 3
        assert text == json.dumps(violin, ensure_ascii=False)  # one line, with a space behind each comma and colon


def test_only_the_rows_that_have_a_grammar_are_held(renderer: Renderer) -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 300] = 1.0
    grammars = [hold_to(VIOLIN, renderer, VOCABULARY), None]
    held = choose(logits, [Sampling(logprobs=1)] * 2, [random_numbers(0)] * 2, grammars)
    assert renderer.tokenizer.decode([held[0].id]).startswith("{")
    assert held[1].id == 300
    # Log-probabilities are the model's own, as they are without a grammar.
    assert held[0].top == held[1].top == ((300, pytest.approx(float(logits.log_softmax(-1)[0, 300]))),)


def test_copies_go_their_own_ways(renderer: Renderer) -> None:
    first = hold_to({"type": "boolean"}, renderer, VOCABULARY)
    second = first.copy()
    (t,) = renderer.tokenizer.encode("t")
    first.take(t)
    row = torch.zeros(VOCABULARY)
    second.hide(row)
    assert row[t] == 0
    with pytest.raises(RuntimeError, match=r"^the answer cannot be held to its schema: Parser Error"):
        first.take(t)


def test_a_tokenizer_that_the_library_cannot_read_is_named(renderer: Renderer) -> None:
    slow = copy.copy(renderer)
    slow.tokenizer = ByT5Tokenizer()
    with pytest.raises(InputError) as refused:
        hold_to(VIOLIN, slow, VOCABULARY)
    assert refused.value.problems[0].what == (
        "answers cannot be held to this schema: Only fast tokenizers are supported"
    )


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"properties": {"a": {"uniqueItems": True, "type": "array"}}}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"$ref": "#/$defs/none"}, "Pointer '/$defs/none' does not exist"),
        ({"type": "string", "pattern": "("}, "regex parse error: ( ^ error: unclosed group"),
    ],
)
def test_what_cannot_be_held_to_is_named(renderer: Renderer, schema: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        hold_to(schema, renderer, VOCABULARY)
    (problem,) = refused.value.problems
    assert (problem.where, problem.what) == ("response_format", f"answers cannot be held to this schema: {said}")
