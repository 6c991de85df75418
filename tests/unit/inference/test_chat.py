"""A conversation in the terminal: what is shown, what is remembered, and what is not computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier import console
from luthier.data.conversation import Message
from luthier.inference.chat import Chat
from luthier.inference.generate import answer_all
from luthier.inference.opened import open_ref
from luthier.inference.sample import Sampling


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a conversation asks, given by the test; then Ctrl-D."""
    lines: list[str] = []
    monkeypatch.setattr(console, "ask", lambda _: lines.pop(0) if lines else None)
    return lines


def test_a_conversation_goes_on_and_begins_anew(tiny_model: Path, said: list[str], monkeypatch: Any) -> None:
    opened = open_ref(str(tiny_model), dtype="float32")
    chat = Chat(opened, "You are a luthier.", Sampling(8))
    asked: list[list[Message]] = []
    answers: list[Any] = []
    ask = chat._ask

    def recorded(messages: list[Message], model: str) -> Any:
        asked.append(messages)
        answers.append(ask(messages, model))
        return answers[-1]

    monkeypatch.setattr(chat, "_ask", recorded)
    said += ["Hi", "And you?", " ", "/reset", "Hi", "x" * 900, "Hi"]
    chat.converse()
    # Too long a message is refused, and the conversation goes on without it.
    roles = [[message.role[0] for message in messages] for messages in asked]
    assert roles == [["s", "u"], ["s", "u", "a", "u"], ["s", "u"], ["s", "u", "a", "u"], ["s", "u", "a", "u"]]
    assert [message.content for message in asked[4]][3] == "Hi"
    prompts = [len(opened.renderer.prompt_ids(messages)) for messages in (asked[0], asked[2])]
    assert [answers[0].cached_tokens, answers[2].cached_tokens] == [0, prompts[1] - 1]
    assert answers[1].cached_tokens >= prompts[0]
    chat._batcher.close()
    whole = answer_all(opened.model, opened.renderer, [asked[0]], max_new_tokens=8)[0]
    assert asked[1][2].content == whole.removesuffix("\N{REPLACEMENT CHARACTER}")  # cut within a character
