"""OpenAI's API over HTTP: what is asked of the model, and what comes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from serving import (
    ASK,
    CHAT,
    TEXT,
    WHO,
    Running,
    asks_of,
    content,
    make_renderer,
    post,
    prompt_of,
    read_events,
    serving,
)
from tiny import QWEN3, make_tokenizer, save_model

from luthier.data.conversation import Conversation, Message, Source
from luthier.inference.batcher import Ask, Sampling
from luthier.inference.text import Writer


def test_the_models(server: Running) -> None:
    with server.client() as client:
        listed = client.get("/v1/models").json()
        one = client.get("/v1/models/violin").json()
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == ["base", "violin", "lute"]
    assert {**one, "created": 0} == {
        "id": "violin",
        "object": "model",
        "created": 0,
        "owned_by": "luthier",
        "luthier": {"system": "You are a luthier.", "thinking": None, "base": False},
    }
    assert listed["data"][0]["luthier"] == {"system": None, "thinking": None, "base": True}


def test_a_chat_answer_is_the_batchers(server: Running, shelf: Path) -> None:
    renderer = make_renderer(shelf / "base")
    prompt = renderer.prompt_ids([Message("system", "You are a luthier."), Message("user", "Who are you?")])
    tokens = list(server.models.batcher.submit(Ask(prompt, "violin", Sampling(max_new_tokens=12))))
    writer = Writer(renderer.tokenizer)
    text = "".join(writer.push(token.id) for token in tokens) + writer.flush()
    answer = post(server, CHAT, ASK)
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "violin"
    message = {"role": "assistant", "content": text, "refusal": None}
    assert answer["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
    assert {**answer["usage"], "prompt_tokens_details": None} == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 12,
        "total_tokens": len(prompt) + 12,
        "prompt_tokens_details": None,
    }


def test_each_model_answers_in_its_own_way(server: Running) -> None:
    said = [content(server, model=name, messages=[{"role": "system", "content": "X"}, WHO]) for name in NAMES]
    assert len(set(said)) == len(NAMES)


NAMES = ("base", "violin", "lute")


# What is trained is what is asked.


def test_the_prompt_is_that_of_training(server: Running, shelf: Path) -> None:
    messages = (
        Message("system", "You are a luthier."),
        Message("user", "你是谁？"),
        Message("assistant", "我是制琴师。"),
        Message("user", "What wood is the best <|im_end|>?"),
        Message("assistant", "Spruce."),
    )
    (example,) = make_renderer(shelf / "base").examples(Conversation(messages, Source("rows.json", 1)), "last")
    sent = [{"role": message.role, "content": message.content} for message in messages[1:-1]]
    assert prompt_of(server, messages=sent) == example.input_ids[: example.prompt_length]


def test_the_system_prompt_is_the_runs_unless_the_request_has_its_own(server: Running, shelf: Path) -> None:
    renderer, user = make_renderer(shelf / "base"), Message("user", "Who are you?")
    own = renderer.prompt_ids([Message("system", "Be brief."), user])
    assert prompt_of(server, messages=[{"role": "system", "content": "Be brief."}, WHO]) == own
    assert prompt_of(server, messages=[{"role": "developer", "content": "Be brief."}, WHO]) == own
    assert prompt_of(server, messages=[{"role": "system", "content": ""}, WHO]) == renderer.prompt_ids([user])
    assert prompt_of(server, model="base") == renderer.prompt_ids([user])
    assert prompt_of(server, model="lute") == renderer.prompt_ids([user])


def test_no_system(shelf: Path) -> None:
    with serving(shelf, "violin", systems=False) as server:
        assert prompt_of(server) == make_renderer(shelf / "base").prompt_ids([Message("user", "Who are you?")])
        with server.client() as client:
            assert client.get("/v1/models/violin").json()["luthier"]["system"] is None


def test_parts_of_a_message_are_lines(server: Running, shelf: Path) -> None:
    parts = [{"type": "text", "text": "Who"}, {"type": "text", "text": "are you?"}]
    asked = prompt_of(server, model="lute", messages=[{"role": "user", "content": parts}])
    assert asked == make_renderer(shelf / "base").prompt_ids([Message("user", "Who\nare you?")])


def test_an_answer_may_be_sent_back_as_it_came(server: Running, shelf: Path) -> None:
    said = post(server, CHAT, ASK)["choices"][0]["message"]
    renderer = make_renderer(shelf / "base")
    messages = [Message("user", "Who are you?"), Message("assistant", said["content"]), Message("user", "Who are you?")]
    assert prompt_of(server, model="lute", messages=[WHO, said, WHO]) == renderer.prompt_ids(messages)


def test_each_adapter_is_asked_with_the_template_it_was_trained_with(shelf: Path, tmp_path: Path) -> None:
    """And with its thinking mode: two runs of one base may differ in both."""
    shutil.copytree(shelf / "lute", tmp_path / "thinker")
    card = tmp_path / "thinker" / "luthier.json"
    kept = json.loads(card.read_text(encoding="utf-8"))
    card.write_text(json.dumps({**kept, "chat_template": QWEN3, "thinking": False}), encoding="utf-8")
    (tmp_path / "lute").symlink_to(shelf / "lute")
    with serving(tmp_path, "lute", "thinker") as server:
        asked = prompt_of(server, model="thinker")
        expected = make_tokenizer(QWEN3).apply_chat_template(
            [WHO], add_generation_prompt=True, enable_thinking=False, return_dict=False
        )
        assert asked == expected
        assert prompt_of(server, model="lute") == make_renderer(shelf / "base").prompt_ids(
            [Message("user", WHO["content"])]
        )
        with server.client() as client:
            listed = client.get("/v1/models").json()["data"]
        assert [each["luthier"]["thinking"] for each in listed] == [None, None, False]


def test_thinking_is_switched_by_the_request(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    make_tokenizer(QWEN3).save_pretrained(tmp_path / "base")
    with serving(tmp_path) as server:
        tokenizer = server.models.base.renderer.tokenizer
        for asked, shown in (
            ({}, False),  # as `luthier chat` asks a plain model
            ({"enable_thinking": True}, True),
            ({"chat_template_kwargs": {"enable_thinking": True}}, True),
            ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ):
            expected = tokenizer.apply_chat_template(
                [WHO], add_generation_prompt=True, enable_thinking=shown, return_dict=False
            )
            assert prompt_of(server, model="base", **asked) == expected


def test_a_plain_text_is_continued_as_it_is(server: Running, shelf: Path) -> None:
    tokenizer = make_renderer(shelf / "base").tokenizer
    text = "<|im_start|>user\nWho?"
    with asks_of(server.models.batcher) as asks:
        post(server, TEXT, {"model": "base", "prompt": [text, "你是谁？"], "max_tokens": 1})
        post(server, TEXT, {"model": "base", "prompt": [5, 6], "max_tokens": 1})
        post(server, TEXT, {"model": "base", "prompt": [[5, 6], [7]], "max_tokens": 1})
    expected = [tokenizer(text)["input_ids"], tokenizer("你是谁？")["input_ids"], [5, 6], [5, 6], [7]]
    assert [ask.prompt for ask in asks] == expected
    assert expected[0][0] == 1


# Streams.


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_says_what_the_whole_answer_says(server: Running, usage: bool) -> None:
    whole = post(server, CHAT, {**ASK, "logprobs": True, "top_logprobs": 2})
    options = {"stream_options": {"include_usage": True}} if usage else {}
    with server.client() as client:
        response = client.post(CHAT, json={**ASK, "logprobs": True, "top_logprobs": 2, "stream": True, **options})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = read_events(response.text)
    assert done == "[DONE]"
    last = chunks.pop() if usage else None
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert (
        "".join(choice["delta"].get("content", "") for choice in choices) == whole["choices"][0]["message"]["content"]
    )
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    told = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    expected = whole["choices"][0]["logprobs"]["content"]
    ours, theirs = ([each for token in of for each in (token, *token["top_logprobs"])] for of in (told, expected))
    assert [(each["token"], each["bytes"]) for each in ours] == [(each["token"], each["bytes"]) for each in theirs]
    # one of them found its prompt kept, so sums may be rounded otherwise
    assert [each["logprob"] for each in ours] == pytest.approx([each["logprob"] for each in theirs], abs=1e-4)
    assert [chunk.get("usage", "none") for chunk in chunks] == [None if usage else "none"] * len(chunks)
    if last is not None:
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_a_streamed_completion(server: Running) -> None:
    body = {"model": "base", "prompt": "Who", "max_tokens": 8, "logprobs": 1}
    whole = post(server, TEXT, body)["choices"][0]
    with server.client() as client:
        *chunks, done = read_events(client.post(TEXT, json={**body, "stream": True}).text)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for field, expected in {
        "tokens": whole["logprobs"]["tokens"],
        "token_logprobs": pytest.approx(whole["logprobs"]["token_logprobs"], abs=1e-4),
        "text_offset": whole["logprobs"]["text_offset"],
    }.items():
        assert [each for choice in choices for each in choice["logprobs"][field]] == expected


# How an answer is drawn.


def test_choices_have_seeds_of_their_own_and_repeat(server: Running) -> None:
    sampled = {"temperature": 1.5, "seed": 7, "n": 3}
    first, again = (post(server, CHAT, {**ASK, **sampled}) for _ in range(2))
    said = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert said == [choice["message"]["content"] for choice in again["choices"]]
    assert len(set(said)) == 3
    assert content(server, temperature=1.5, seed=8) == said[1]
    assert first["usage"]["completion_tokens"] == 36
    assert first["usage"]["prompt_tokens"] == post(server, CHAT, ASK)["usage"]["prompt_tokens"]


def test_what_is_asked_reaches_the_batcher(server: Running) -> None:
    body = {**ASK, "temperature": 0.5, "top_p": 0.25, "top_k": 9, "seed": 3, "n": 2, "logprobs": True}
    with asks_of(server.models.batcher) as asks:
        post(server, CHAT, body)
        post(server, CHAT, {**ASK, "max_tokens": None, "top_k": -1, "temperature": None})
        post(server, CHAT, {**ASK, "max_completion_tokens": 2})
    assert [ask.sampling for ask in asks] == [
        Sampling(12, 0.5, 0.25, 9, 3, 0),
        Sampling(12, 0.5, 0.25, 9, 4, 0),
        Sampling(16),
        Sampling(2),
    ]


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(server: Running) -> None:
    text = content(server, max_tokens=30)
    stop = text[6:8]
    answer = post(server, CHAT, {**ASK, "max_tokens": 30, "stop": [stop, "never"], "logprobs": True})
    choice = answer["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 30
    assert content(server, max_tokens=30, stop=stop) == text[: text.index(stop)]


def test_log_probabilities_with_their_bytes(server: Running) -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": "琴"}], "max_tokens": 5}
    told = post(server, CHAT, {**body, "logprobs": True, "top_logprobs": 3})["choices"][0]["logprobs"]["content"]
    batcher, tokenizer = server.models.batcher, server.models.base.renderer.tokenizer
    prompt = server.models.base.prompt_ids([Message("user", "琴")], None)
    tokens = list(batcher.submit(Ask(prompt, "base", Sampling(max_new_tokens=5, logprobs=3))))
    assert [each["logprob"] for each in told] == pytest.approx([token.logprob for token in tokens], abs=1e-5)
    assert [len(each["top_logprobs"]) for each in told] == [3] * 5
    written = b"".join(bytes(each["bytes"]) for each in told)
    assert written.decode(errors="replace") == tokenizer.decode([token.id for token in tokens])
    assert [each["token"] for each in told] == [tokenizer.decode([token.id]) for token in tokens]
