"""A real server on a real socket, with a tiny random model, its adapters `violin` and `lute`, and the base."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import httpx

from luthier.data.render import Renderer
from luthier.inference.batcher import Ask, Batcher
from luthier.model import load
from luthier.recipe.schema import ModelSettings
from luthier.server.answering import Limits
from luthier.server.app import Settings, create_app
from luthier.server.door import Rules
from luthier.server.models import Models
from luthier.server.run import Server, listen, make_config, make_models, name_runs, open_base

SYSTEM = {"violin": "You are a luthier.", "lute": None}


def make_renderer(folder: Path) -> Renderer:
    return load.make_renderer(folder, load.load_tokenizer(folder, ModelSettings(ref=str(folder))), None)


@dataclass
class Running:
    url: str
    models: Models
    lines: list[dict[str, Any]] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)


@contextlib.contextmanager
def serving(
    shelf: Path,
    *names: str,
    rules: Rules | None = None,
    limits: Limits | None = None,
    log_prompts: bool = False,
    **options: Any,
) -> Iterator[Running]:
    """A server in a thread of this process, at a free port; `lines` is its log."""
    usual: dict[str, Any] = {"show_base": True, "systems": True, "folder": None, "max_batch": 4}
    named = name_runs([shelf / name for name in names])
    base, opened = open_base(list(named.values()), None if named else str(shelf / "base"), dtype="float32")
    models = make_models(named, base, opened, **{**usual, **options})
    lines: list[dict[str, Any]] = []
    settings = Settings(rules or Rules(), limits or Limits(context=256, max_tokens=16), log_prompts)
    app = create_app(models, settings, lines.append)
    listening = listen("127.0.0.1", 0)
    started = threading.Event()
    server = Server(make_config(app, drain=5), started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    assert started.wait(60)

    def stop() -> None:
        server.should_exit = True

    try:
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", models, lines, stop)
    finally:
        stop()
        thread.join(60)
        models.batcher.close()
    assert not thread.is_alive()


@contextlib.contextmanager
def paused(batcher: Batcher) -> Iterator[None]:
    """The batcher computes nothing in between; what is asked waits."""
    there, go_on = threading.Event(), threading.Event()

    def job() -> None:
        there.set()
        go_on.wait(60)

    thread = threading.Thread(target=batcher._do, args=(job,))
    thread.start()
    assert there.wait(60)
    try:
        yield
    finally:
        go_on.set()
        thread.join()


@contextlib.contextmanager
def asks_of(batcher: Batcher) -> Iterator[list[Ask]]:
    """What reaches the batcher in between, which answers as ever."""
    seen: list[Ask] = []
    submit = batcher.submit

    def note(ask: Ask) -> Any:
        seen.append(ask)
        return submit(ask)

    with mock.patch.object(batcher, "submit", note):
        yield seen


def until(holds: Callable[[], bool]) -> None:
    """Waits for what another thread does."""
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to hold")


def read_events(text: str) -> list[Any]:
    """The data of server-sent events; `[DONE]` as it is."""
    *events, rest = text.split("\n\n")
    assert rest == ""
    assert all(event.startswith("data: ") for event in events)
    return [data if (data := event[6:]) == "[DONE]" else json.loads(data) for event in events]


# What most tests ask.

WHO = {"role": "user", "content": "Who are you?"}
ASK: dict[str, Any] = {"model": "violin", "messages": [WHO], "max_tokens": 12}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def post(server: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    with server.client() as client:
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


def content(server: Running, **changes: Any) -> str:
    return str(post(server, CHAT, {**ASK, **changes})["choices"][0]["message"]["content"])


def prompt_of(server: Running, **changes: Any) -> list[int]:
    """The tokens that reach the model."""
    with asks_of(server.models.batcher) as asks:
        post(server, CHAT, {**ASK, "max_tokens": 1, **changes})
    (ask,) = asks
    return ask.prompt


def refusal(server: Running, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    with server.client() as client:
        response = client.post(path, json=body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return error
