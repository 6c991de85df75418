"""`luthier serve` in a process of its own: two runs and their base, from the command to Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import httpx
import pytest
from driver import SYSTEM, Workplace, finished, luthier, luthier_process

from luthier.data.conversation import Message
from luthier.inference.opened import open_ref

CHAT = "/v1/chat/completions"
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture(scope="module")
def runs(shop: Workplace) -> list[str]:
    """Two trained runs, `violin` and `lute`, of one base model."""
    names = ("violin", "lute")
    return [str(shop.train(name, train={"steps": 2, "seed": seed}).path) for seed, name in enumerate(names)]


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], httpx.Client, dict[str, Any]]]:
    """The process, a client of it, and the object it printed when it listened."""
    process = luthier_process("serve", *arguments, "--port", 0, "--json")
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n"):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        text += line
    said = json.loads(text)
    try:
        with httpx.Client(base_url=said["url"], timeout=60, trust_env=False) as client:
            yield process, client, said
    finally:
        process.kill()
        process.communicate()


def ask(client: httpx.Client, model: str, **options: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 8, **options}
    return client.post(CHAT, json=body)


def log_of(err: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in err.splitlines() if line.startswith("{")]


def test_two_runs_and_the_base_from_start_to_end(shop: Workplace, runs: list[str]) -> None:
    with serving(*runs, "--base") as (process, client, said):
        assert said == {
            "ok": True,
            "url": said["url"],
            "api": f"{said['url']}/v1",
            "models": [shop.model.name, "violin", "lute"],
            "memory": said["memory"],
        }
        assert "1.1 GB for earlier requests (--cache)" in said["memory"]
        answers = {name: ask(client, name).json() for name in said["models"]}
        assert "<title>Luthier</title>" in client.get("/").text
        process.send_signal(signal.SIGTERM if os.name == "posix" else signal.SIGBREAK)  # type: ignore[attr-defined]
        done = finished(process)
    assert done.status == 0
    assert done.err.splitlines()[-1] == "Stopped."
    for name, ref in (("violin", runs[0]), ("lute", runs[1])):
        opened = open_ref(ref)
        prompt = opened.renderer.prompt_ids([Message("system", SYSTEM), Message("user", "Who are you?")])
        assert answers[name]["usage"]["prompt_tokens"] == len(prompt)
        output = opened.model.generate(
            input_ids=opened.model.base_model.model.model.embed_tokens.weight.new_tensor([prompt]).long(),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=opened.renderer.stop_ids,
            pad_token_id=0,
        )
        ids = [token for token in output[0, len(prompt) :].tolist() if token not in opened.renderer.stop_ids]
        text = opened.renderer.tokenizer.decode(ids, skip_special_tokens=True)
        assert answers[name]["choices"][0]["message"]["content"].rstrip("�") == text.rstrip("�")
    log = log_of(done.err)
    assert [(line["path"], line["status"]) for line in log] == [(CHAT, 200)] * 3 + [("/", 200)]
    assert "Who are you?" not in done.err


@posix
def test_ctrl_c_lets_answers_end(runs: list[str]) -> None:
    with serving(runs[0], "--drain", 60) as (process, client, _):
        with client.stream("POST", CHAT, json={"model": "violin", "messages": [{"role": "user", "content": "Hi"}],
                                               "max_tokens": 100, "stream": True}) as response:  # fmt: skip
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert finished(process).status == 0


@posix
def test_a_second_ctrl_c_ends_them(runs: list[str]) -> None:
    """Eight answers, one after the other, would take seconds."""
    body = {"model": "violin", "messages": [{"role": "user", "content": "Hi"}], "n": 8, "max_tokens": 200}
    with serving(runs[0], "--drain", 60, "--max-batch", 1) as (process, client, said):
        with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            with suppress(httpx.TransportError):  # the first Ctrl-C has arrived when nobody new is let in
                while httpx.get(f"{said['url']}/health", trust_env=False).status_code == 200:
                    pass
            process.send_signal(signal.SIGINT)
            rest = []
            with suppress(httpx.TransportError):
                rest += lines
        done = finished(process)
    assert "data: [DONE]" not in rest
    assert (done.status, done.err.splitlines()[-1]) == (0, "Stopped.")


@posix
def test_a_port_that_is_taken(runs: list[str]) -> None:
    with serving(runs[0]) as (_, _, said):
        port = said["url"].rpartition(":")[2]
        done = luthier("serve", runs[0], "--port", port)
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"✗ 127.0.0.1:{port}: cannot be listened on: Address already in use\n  → name another: --port 8001\n"
    )


def test_a_model_without_a_run(shop: Workplace) -> None:
    with serving("--model", shop.model) as (_, client, said):
        assert said["models"] == [shop.model.name]
        assert ask(client, shop.model.name).status_code == 200


def test_a_key_of_the_environment(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_API_KEY", "a-canary-of-the-key")
    with serving(runs[0], "--host", "0.0.0.0") as (process, _, said):
        port = said["url"].rpartition(":")[2]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as local:
            assert ask(local, "violin").status_code == 401
            local.headers["Authorization"] = "Bearer a-canary-of-the-key"
            assert ask(local, "violin").status_code == 200
        process.terminate()
        done = finished(process)
    assert "a-canary-of-the-key" not in done.out + done.err


def test_what_keeps_it_from_serving_is_said_at_once(shop: Workplace, runs: list[str]) -> None:
    done = luthier("serve")
    assert (done.status, done.err) == (
        2,
        "✗ luthier serve: nothing to serve\n  → name a run's folder, or --model REF\n",
    )
    done = luthier(
        "serve", shop.folder / "nosuch", shop.folder / "neither", "--host", "0.0.0.0", "--adapters", "nosuch"
    )
    assert done.status == 2
    assert [line.partition(":")[0] for line in done.err.splitlines() if line.startswith("✗")] == [
        "✗ --host",
        "✗ --adapters nosuch",
    ]
    done = luthier("serve", shop.folder / "nosuch", shop.folder / "neither")
    assert done.err.count("there is no run here (no recipe.yaml)") == 2


def test_what_is_not_installed_is_named(runs: list[str]) -> None:
    with mock.patch("importlib.util.find_spec", lambda name: None):
        done = luthier("serve", runs[0])
    assert (done.status, done.err) == (
        2,
        "✗ luthier serve: needs what is not installed: fastapi, uvicorn, prometheus-client\n"
        "  → pip install fastapi uvicorn prometheus-client\n",
    )
