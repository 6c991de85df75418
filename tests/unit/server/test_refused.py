"""What a request asks in vain: refused in OpenAI's shape, every problem named."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from serving import ASK, CHAT, TEXT, Running, asks_of, content, post, refusal, serving
from tiny import QWEN3, make_tokenizer

from luthier.data.render import Renderer
from luthier.server.answering import Limits
from luthier.server.errors import ApiError
from luthier.server.models import Served

FIVE = ["a", "b", "c", "d", "e"]
NO_TOOLS = "not supported: this server takes and returns text."
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"foo": 1, "bar": 2},
        "foo",
        "Unrecognized request argument supplied: foo. Unrecognized request argument supplied: bar.",
    ),
    (
        {"tools": [{"type": "function"}], "n": 0},
        "n",
        f"n: Input should be greater than or equal to 1. tools: {NO_TOOLS}",
    ),
    (
        {"response_format": {"type": "xml"}},
        "response_format.type",
        "response_format.type: Input should be 'text', 'json_object' or 'json_schema'.",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format",
        "response_format: json_schema: needed with the type json_schema, and with no other.",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strin"}}}},
        "response_format",
        "response_format: answers cannot be held to this schema: Invalid type: strin; change it, or leave that out.",
    ),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty: penalties are not supported; leave it at 0."),
    ({"logit_bias": {"5": 1}}, "logit_bias", "logit_bias: biases are not supported."),
    ({"stop": FIVE}, "stop", "stop: Value should have at most 4 items after validation, not 5."),
    ({"temperature": 2.5}, "temperature", "temperature: Input should be less than or equal to 2."),
    ({"max_tokens": 0}, "max_tokens", "max_tokens: Input should be greater than or equal to 1."),
    ({"messages": []}, "messages", "messages: List should have at least 1 item after validation, not 0."),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages.0.role",
        "messages.0.role: Input should be 'system', 'developer', 'user' or 'assistant'.",
    ),
    (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "messages.0",
        f"messages.0: tools are {NO_TOOLS}",
    ),
    ({"messages": [{"role": "user"}]}, "messages.0", "messages.0: content is missing: a text is needed."),
    ({"top_logprobs": 2}, "", "top_logprobs: only with logprobs: true."),
    ({"stream_options": {"include_usage": True}}, "", "stream_options: only with stream: true."),
    (
        {"chat_template_kwargs": {"tools": 1}},
        "chat_template_kwargs.tools",
        "Unrecognized request argument supplied: chat_template_kwargs.tools.",
    ),
    (
        {"enable_thinking": True},
        "enable_thinking",
        "enable_thinking: the chat template of violin has no thinking mode.",
    ),
]


@pytest.mark.parametrize(("changes", "param", "message"), REFUSED, ids=[next(iter(each[0])) for each in REFUSED])
def test_what_cannot_be_obeyed_is_refused(server: Running, changes: dict[str, Any], param: str, message: str) -> None:
    error = refusal(server, CHAT, {**ASK, **changes})
    assert error["message"] == message
    assert (error["type"], error["param"]) == ("invalid_request_error", param or None)


def test_answers_cannot_be_held_to_a_schema_without_the_library(server: Running) -> None:
    with mock.patch("importlib.util.find_spec", lambda name: None):
        error = refusal(server, CHAT, {**ASK, "response_format": {"type": "json_object"}})
    assert error == {
        "message": "response_format: this server cannot hold answers to a schema; "
        "whoever runs the server can: pip install llguidance.",
        "type": "invalid_request_error",
        "param": "response_format",
        "code": "invalid_value",
    }


def test_an_answer_that_begins_with_thinking_is_not_held_to_a_schema() -> None:
    served = Served("run", Renderer(make_tokenizer(QWEN3), thinking=True), None, is_base=False)
    with pytest.raises(ApiError) as refused:
        served.grammar({"type": "object"}, None, 400)
    assert refused.value.message == (
        "response_format: an answer that begins with thinking is no JSON; send enable_thinking: false."
    )
    assert served.grammar({"type": "object"}, False, 400)


def test_neutral_values_are_taken(server: Running) -> None:
    neutral = {
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "frequency_penalty": 0.0,
        "logit_bias": {}, "user": "me", "metadata": {"a": "b"}, "store": False, "seed": None, "stop": None,
        "stream": False, "logprobs": False,
    }  # fmt: skip
    assert content(server, **neutral) == content(server)


def test_a_missing_model_is_named_with_those_there_are(server: Running) -> None:
    error = refusal(server, CHAT, {**ASK, "model": "gpt-4"}, 404)
    assert error["message"] == "The model 'gpt-4' does not exist. There are: base, violin, lute."
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert refusal(server, CHAT, {}) == {
        "message": "model: Field required. messages: Field required.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "invalid_value",
    }


def test_a_prompt_that_does_not_fit(server: Running) -> None:
    long = {"role": "user", "content": "wood " * 300}
    error = refusal(server, CHAT, {**ASK, "messages": [long], "max_tokens": None})
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's context is 256 tokens, and the request has ")
    error = refusal(server, CHAT, {**ASK, "max_tokens": 250})
    assert error["message"] == (
        "This model's context is 256 tokens, and the request has 22 tokens of the prompt and 250 of the answer. "
        "Shorten it."
    )


def test_an_answer_without_a_wish_fits_into_what_is_left(shelf: Path) -> None:
    with serving(shelf, "lute", limits=Limits(context=30, max_tokens=100)) as server:
        answer = post(server, TEXT, {"model": "lute", "prompt": [5] * 20})
        assert answer["usage"]["completion_tokens"] <= 10
        with asks_of(server.models.batcher) as asks:
            post(server, TEXT, {"model": "lute", "prompt": [5] * 20})
    assert asks[0].sampling.max_new_tokens == 10


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt: at least one token is needed."),
        ([5, 400], "prompt: has a token that the model does not know: it has 400; use the model's own tokenizer."),
    ],
)
def test_a_prompt_that_is_none(server: Running, prompt: Any, message: str) -> None:
    assert refusal(server, TEXT, {"model": "base", "prompt": prompt})["message"] == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "The body is not JSON: Expecting property name enclosed in double quotes."),
        (b"\xff\xfe", "The body is not JSON: Expecting value."),
        (b"[" * 100_000, "There was an error parsing the body."),
        (b"[]", "Input should be a valid dictionary or object to extract fields from."),
        (
            b'{"model": "lute", "messages": [{"role": "user", "content": "\\ud800"}]}',
            "text '\\ud800': holds half a character (a lone surrogate); write it as UTF-8.",
        ),
    ],
)
def test_bytes_that_are_no_request(server: Running, body: bytes, message: str) -> None:
    with server.client() as client:
        response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["message"]) == (400, message)


def test_half_characters_in_names_and_texts(server: Running) -> None:
    bodies = {
        CHAT: b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}',
        TEXT: b'{"model": "base", "prompt": "a\\ud800"}',
    }
    with server.client() as client:
        json = {"Content-Type": "application/json"}
        said = [client.post(path, content=body, headers=json).json()["error"] for path, body in bodies.items()]
    assert [error["message"] for error in said] == [
        "The model '\\ud800' does not exist. There are: base, violin, lute.",
        "text 'a\\ud800': holds half a character (a lone surrogate); write UTF-8.",
    ]


def test_what_is_not_there(server: Running) -> None:
    with server.client() as client:
        assert client.get("/v1/nothing").json()["error"]["message"] == "There is nothing at /v1/nothing."
        assert client.get(CHAT).json()["error"]["message"] == "GET is not allowed here."
        assert client.get("/docs").status_code == 404
