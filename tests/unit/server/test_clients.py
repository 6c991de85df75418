"""OpenAI's own Python client, as people use it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field
from serving import Running, asks_of, until

MESSAGES: Any = [{"role": "user", "content": "Who are you?"}]


def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_models_and_the_same_question_to_each(server: Running) -> None:
    with client(server) as asked:
        names = [model.id for model in asked.models.list()]
        assert names == ["base", "violin", "lute"]
        said = [
            asked.chat.completions.create(model=name, messages=MESSAGES, max_tokens=8, seed=1).choices[0]
            for name in names
        ]
    assert [choice.finish_reason for choice in said] == ["length"] * 3
    assert len({choice.message.content for choice in said}) == 3


def test_a_stream_with_its_usage(server: Running) -> None:
    with client(server) as asked:
        whole = asked.chat.completions.create(model="violin", messages=MESSAGES, max_tokens=8)
        stream = asked.chat.completions.create(
            model="violin", messages=MESSAGES, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert (last.choices, last.usage.completion_tokens) == ([], 8)


class Violin(BaseModel):
    model_config = ConfigDict(extra="forbid")
    wood: Literal["spruce", "maple"]
    strings: Annotated[int, Field(ge=1, le=9)]
    old: bool


def test_answers_that_are_what_a_schema_describes(server: Running) -> None:
    """Of random models, which have never seen JSON: whole and streamed, several at once, each held to its own."""
    with client(server) as asked:
        parsed = [
            asked.chat.completions.parse(
                model=name, messages=MESSAGES, response_format=Violin, max_tokens=60, n=3, temperature=1, seed=5
            )
            for name in ("base", "violin")
        ]
        stream = asked.chat.completions.create(
            model="violin",
            messages=MESSAGES,
            max_tokens=60,
            temperature=1,
            seed=6,  # that of the second choice above
            stream=True,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "violin", "strict": True, "schema": Violin.model_json_schema()},
            },
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        cut = asked.chat.completions.create(
            model="base", messages=MESSAGES, max_tokens=2, response_format={"type": "json_object"}
        )
    choices = [choice for answer in parsed for choice in answer.choices]
    assert [choice.finish_reason for choice in choices] == ["stop"] * 6
    assert all(isinstance(choice.message.parsed, Violin) for choice in choices)
    assert len({choice.message.content for choice in choices}) > 1
    assert streamed == parsed[1].choices[1].message.content
    assert cut.choices[0].finish_reason == "length"
    assert (cut.choices[0].message.content or "").startswith("{")


def test_completions_and_log_probabilities(server: Running) -> None:
    with client(server) as asked:
        text = asked.completions.create(model="base", prompt="Who", max_tokens=4, logprobs=2)
        chat = asked.chat.completions.create(
            model="base", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2
        )
    assert text.choices[0].logprobs is not None
    assert len(text.choices[0].logprobs.tokens or []) == 4
    assert chat.choices[0].logprobs is not None
    assert [len(token.top_logprobs) for token in chat.choices[0].logprobs.content or []] == [2] * 4


def test_what_openai_does_not_know_goes_in_extra_body(server: Running) -> None:
    with client(server) as asked, asks_of(server.models.batcher) as asks:
        asked.chat.completions.create(model="lute", messages=MESSAGES, max_tokens=1, extra_body={"top_k": 5})
    assert asks[0].sampling.top_k == 5


def test_errors_are_the_clients_own(server: Running) -> None:
    with client(server) as asked:
        with pytest.raises(openai.NotFoundError) as missing:
            asked.chat.completions.create(model="gpt-4", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError) as bad:
            asked.chat.completions.create(model="base", messages=MESSAGES, temperature=9)
    assert missing.value.code == "model_not_found"
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")


def test_many_at_once_are_each_answered_as_alone(server: Running) -> None:
    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as asked:

            async def one(number: int) -> str | None:
                name = ("base", "violin", "lute")[number % 3]
                message: Any = [{"role": "user", "content": "Who?" * (1 + number % 2)}]
                if number % 4:
                    answer = await asked.chat.completions.create(model=name, messages=message, max_tokens=6)
                    return answer.choices[0].message.content
                stream = await asked.chat.completions.create(model=name, messages=message, max_tokens=6, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return list(await asyncio.gather(*map(one, range(24))))

    said = asyncio.run(ask_all())
    assert said == said[:12] * 2
    assert len(set(said)) == 6


def test_a_stream_that_is_closed_stops(server: Running) -> None:
    with client(server) as asked:
        stream = asked.chat.completions.create(model="base", messages=MESSAGES, max_tokens=150, stream=True)
        next(iter(stream))
        stream.close()
        until(lambda: server.models.batcher.running() == 0)
