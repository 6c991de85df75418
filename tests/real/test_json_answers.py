"""SmolLM2 held to a schema: what it says, with OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field
from starlette.testclient import TestClient

from luthier.inference.grammar import hold_to
from luthier.server.answering import Limits
from luthier.server.app import Settings, create_app
from luthier.server.door import Rules
from luthier.server.run import make_models, open_base

pytestmark = pytest.mark.real

REF = "bundled:smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "Describe a famous violin. Name its maker, its year and its woods."}]


class Violin(BaseModel):
    model_config = ConfigDict(extra="forbid")
    maker: Annotated[str, Field(max_length=40)]
    year: Annotated[int, Field(ge=1550, le=1900)]
    woods: Annotated[list[Literal["spruce", "maple", "willow", "ebony"]], Field(min_length=1, max_length=3)]


@pytest.fixture(scope="module")
def asked() -> Iterator[openai.OpenAI]:
    name, opened = open_base([], REF, dtype="float32")
    models = make_models({}, name, opened, show_base=True, systems=True, folder=None, max_batch=8)
    app = create_app(models, Settings(Rules(), Limits(context=2048)), lambda line: None)
    with TestClient(app, base_url="http://127.0.0.1") as http:
        yield openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=http, max_retries=0)
    models.batcher.close()


def test_an_answer_parses_and_is_what_the_schema_says(asked: openai.OpenAI) -> None:
    for temperature in (0, 1.5):
        answer = asked.chat.completions.parse(
            model=REF, messages=QUESTION, response_format=Violin, n=4, temperature=temperature, seed=1, max_tokens=120
        )
        assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 4
        assert [type(choice.message.parsed) for choice in answer.choices] == [Violin] * 4
        assert len({choice.message.content for choice in answer.choices}) == (4 if temperature else 1)


def test_an_answer_that_is_cut_says_so(asked: openai.OpenAI) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "violin", "schema": Violin.model_json_schema()}}
    answer = asked.chat.completions.create(model=REF, messages=QUESTION, max_tokens=5, response_format=schema)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.choices[0].message.content or "").startswith('{"maker": "')


def test_a_vocabulary_of_150_000_tokens(qwen3_folder: Any) -> None:
    """Qwen3's, whose model gives more logits than there are tokens."""
    import torch

    from luthier.model import load
    from luthier.recipe.schema import ModelSettings

    tokenizer = load.load_tokenizer(qwen3_folder, ModelSettings(ref="qwen3"))
    renderer = load.make_renderer(qwen3_folder, tokenizer, thinking=False)
    grammar = hold_to(Violin.model_json_schema(), renderer, 151_936)
    said = '{"maker": "琴师", "year": 1720, "woods": ["maple"]}'
    for token in [*tokenizer.encode(said), renderer.end_of_turn_id]:
        logits = torch.zeros(151_936)
        grammar.hide(logits)
        assert logits[token] == 0
        assert logits[151_700:].isinf().all()
        grammar.take(token)
