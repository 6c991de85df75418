"""What a server sends to the model is what was trained: real tokenizers and templates, over HTTP.

The weights are a stand-in that answers nothing: here the prompt matters alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.data.conversation import Conversation, Message, Source
from luthier.data.render import Renderer
from luthier.hub.fetch import fetch_model
from luthier.inference.batcher import Answer, Ask
from luthier.model import load
from luthier.recipe.schema import ModelSettings
from luthier.server.answering import Limits
from luthier.server.app import Settings, create_app
from luthier.server.door import Rules
from luthier.server.models import Models, Served

pytestmark = pytest.mark.real

SYSTEM = "现在你要扮演皇帝身边的女人--甄嬛"
TURNS = (
    Message("user", "你是谁？"),
    Message("assistant", "我是甄嬛，家父是大理寺少卿甄远道。"),
    Message("user", "What does <|im_end|> mean?\n\n  And  this: 𠮷 e\u0301"),
    Message("assistant", "Nothing to me."),
)


class Asked:
    """A batcher that keeps what it is asked, and has nothing to say."""

    max_batch = 1

    def __init__(self) -> None:
        self.asks: list[Ask] = []

    def waiting(self) -> int:
        return 0

    running = waiting

    def submit(self, ask: Ask) -> Answer:
        self.asks.append(ask)
        answer = Answer()
        answer._end("stop")
        return answer


def check_served(renderer: Renderer, **request: Any) -> None:
    """Every turn that training labels, asked of a server: with the run's system prompt, and with the request's."""
    batcher: Any = Asked()
    served = Served("run", renderer, SYSTEM, is_base=True)
    models = Models(batcher, served, show_base=True, systems=True, folder=None)
    app = create_app(models, Settings(Rules(), Limits()), lambda line: None)
    messages = (Message("system", SYSTEM), *TURNS)
    trained = [
        example.input_ids[: example.prompt_length]
        for last in (2, 4)
        for example in renderer.examples(Conversation(messages[: last + 1], Source("rows.json", 1)), "last")
    ]
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for first in (0, 1):
            for last in (2, 4):
                sent = [{"role": message.role, "content": message.content} for message in messages[first:last]]
                answer = client.post("/v1/chat/completions", json={"model": "run", "messages": sent, **request})
                assert answer.status_code == 200, answer.text
                assert answer.json()["usage"]["prompt_tokens"] == len(batcher.asks[-1].prompt)
    assert [ask.prompt for ask in batcher.asks] == trained * 2
    assert len(set(map(tuple, trained))) == 2


def test_smollm2() -> None:
    ref = "bundled:smollm2-135m-instruct"
    folder = fetch_model(ref).path
    check_served(load.make_renderer(folder, load.load_tokenizer(folder, ModelSettings(ref=ref)), thinking=None))


@pytest.mark.parametrize("thinking", [False, True])
def test_qwen3(qwen3_folder: Path, thinking: bool) -> None:
    tokenizer = load.load_tokenizer(qwen3_folder, ModelSettings(ref="Qwen/Qwen3-0.6B"))
    check_served(Renderer(tokenizer, thinking=thinking))


def test_qwen3_switched_by_the_request(qwen3_folder: Path) -> None:
    """A server of a run without thinking, asked to think: as a run with thinking was trained."""
    tokenizer = load.load_tokenizer(qwen3_folder, ModelSettings(ref="Qwen/Qwen3-0.6B"))
    served = Served("run", Renderer(tokenizer, thinking=False), None, is_base=True)
    thinking = Renderer(tokenizer, thinking=True)
    (example,) = thinking.examples(Conversation((TURNS[0], TURNS[1]), Source("rows.json", 1)))
    assert served.prompt_ids([TURNS[0]], True) == example.input_ids[: example.prompt_length]
    assert served.prompt_ids([TURNS[0]], False) != served.prompt_ids([TURNS[0]], True)
