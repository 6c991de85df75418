"""A good citizen: full queues, clients that go away, stopping, what is logged and counted."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from unittest import mock

import httpx
import pytest
from serving import ASK, CHAT, Running, asks_of, paused, read_events, serving, until

from luthier import console
from luthier.server.answering import Limits
from luthier.server.run import describe_memory

LONG = {**ASK, "model": "base", "max_tokens": 200}


def test_a_full_queue_is_429_and_empties(shelf: Path) -> None:
    with serving(shelf, limits=Limits(waiting=2, context=256), max_batch=1) as server, server.client() as client:
        body = {**ASK, "model": "base"}
        batcher = server.models.batcher
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(client.post(CHAT, json=body))) for _ in range(3)]
        with paused(batcher):
            for number, thread in enumerate(threads, 1):
                thread.start()
                until(lambda number=number: batcher.waiting() + batcher.running() == number)  # type: ignore[misc]
            assert client.get("/ready").status_code == 503
            refused = client.post(CHAT, json=body)
            two = client.post(CHAT, json={**body, "n": 2})
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert client.get("/ready").json() == {"ready": True}
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"] == {
        "message": "3 requests are waiting already; try again in a moment.",
        "type": "rate_limit_error",
        "param": None,
        "code": "queue_full",
    }
    assert two.status_code == 429


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_answer(shelf: Path, stream: bool) -> None:
    """Before its first token, in the queue, or in the middle: the model is free, and the log says 499."""
    with serving(shelf) as server:
        batcher = server.models.batcher
        with paused(batcher), asks_of(batcher) as asks, pytest.raises(httpx.ReadTimeout), server.client() as client:
            client.post(CHAT, json={**LONG, "stream": stream}, timeout=0.3)
        until(lambda: len(server.lines) == 1)
        assert len(asks) == 1
        until(lambda: batcher.waiting() + batcher.running() == 0)
        (line,) = server.lines
    assert (line["status"], line["finish"]) == (499, "cancelled")
    assert line["completion_tokens"] < 200


def test_a_stream_that_is_left_in_the_middle_stops(shelf: Path) -> None:
    with serving(shelf) as server, server.client() as client:
        with client.stream("POST", CHAT, json={**LONG, "stream": True, "n": 2}) as response:
            next(response.iter_lines())
        until(lambda: server.models.batcher.running() == 0)
        until(lambda: len(server.lines) == 1)
        assert (server.lines[0]["status"], server.lines[0]["finish"]) == (499, "cancelled,cancelled")


def test_a_stop_string_frees_the_model(shelf: Path) -> None:
    with serving(shelf) as server, server.client() as client:
        said = client.post(CHAT, json=LONG).json()["choices"][0]["message"]["content"]
        client.post(CHAT, json={**LONG, "stop": said[2]})
        until(lambda: server.models.batcher.running() == 0)
        until(lambda: len(server.lines) == 2)
        assert server.lines[1]["finish"] == "stop"


def test_a_failure_is_told_in_openais_shape(shelf: Path) -> None:
    with serving(shelf) as server, server.client() as client:
        broken = mock.patch.object(server.models.batcher._decoder, "step", side_effect=RuntimeError("out of strings"))
        with broken:
            whole = client.post(CHAT, json=LONG)
            *chunks, last = read_events(client.post(CHAT, json={**LONG, "stream": True}).text)
        assert client.post(CHAT, json=LONG).status_code == 200
    told = {
        "message": "The answer could not be generated; the server's log says why.",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert (whole.status_code, whole.json()) == (500, {"error": told})
    assert last == {"error": told}
    assert len(chunks) == 1
    assert [line.get("error") for line in server.lines] == ["RuntimeError: out of strings"] * 2 + [None]


def test_a_mistake_of_ours_is_a_500_with_its_number(shelf: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(shelf) as server, server.client() as client:
        with mock.patch.object(server.models, "all", side_effect=[KeyError("no such peg"), []]):
            response = client.get("/v1/models")
        number = response.headers["x-request-id"]
    assert response.status_code == 500
    assert response.json()["error"]["message"] == f"A mistake of the server's; its log tells of request {number}."
    assert "KeyError: 'no such peg'" in caplog.text


def test_stopping_drains(shelf: Path) -> None:
    """What was asked before is answered whole; nobody new is let in."""
    with serving(shelf) as server, server.client() as client:
        answers: list[httpx.Response] = []
        batcher = server.models.batcher
        thread = threading.Thread(target=lambda: answers.append(client.post(CHAT, json={**LONG, "stream": True})))
        with paused(batcher):
            thread.start()
            until(lambda: batcher.waiting() == 1)
            server.stop()

            def refused() -> bool:
                try:
                    return httpx.get(f"{server.url}/health", trust_env=False).status_code != 200
                except httpx.TransportError:  # no connection, or one that was waiting when the socket closed
                    return True

            until(refused)
        thread.join()
    assert read_events(answers[0].text)[-1] == "[DONE]"


def test_a_batcher_that_closes_is_told_to_who_waits(shelf: Path) -> None:
    with serving(shelf) as server, server.client() as client:
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(client.post(CHAT, json=LONG)))
        with paused(server.models.batcher):
            thread.start()
            until(lambda: server.models.batcher.waiting() == 1)
            server.models.batcher._closed = True
        thread.join()
    assert (answers[0].status_code, answers[0].json()["error"]["message"]) == (503, "The server is stopping.")


# The log and the metrics.


def test_one_line_a_request_without_its_text(shelf: Path) -> None:
    with serving(shelf, "violin") as server, server.client() as client:
        client.post(CHAT, json=ASK)
        client.post(CHAT, json={**ASK, "model": "none"})
    line, refused = server.lines
    assert {**line, "seconds": 0, "time": 0, "request": "", "first_token_seconds": 0, "writing_seconds": 0} == {
        "time": 0,
        "request": "",
        "client": "127.0.0.1",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "seconds": 0,
        "model": "violin",
        "stream": False,
        "prompt_tokens": 22,
        "cached_tokens": line["cached_tokens"],
        "completion_tokens": 12,
        "finish": "length",
        "first_token_seconds": 0,
        "writing_seconds": 0,
    }
    assert (refused["status"], refused["error"]) == (404, "model_not_found")
    assert "Who are you?" not in json.dumps(server.lines)


def test_prompts_are_logged_where_it_was_asked_for(shelf: Path) -> None:
    with serving(shelf, log_prompts=True) as server, server.client() as client:
        said = client.post(CHAT, json={**ASK, "model": "base"}).json()["choices"][0]["message"]["content"]
        client.post("/v1/completions", json={"model": "base", "prompt": "Who", "max_tokens": 1})
    assert server.lines[0]["messages"] == ASK["messages"]
    assert server.lines[0]["answers"] == [said]
    assert server.lines[1]["prompt"] == "Who"


def test_a_line_of_the_log_is_json_without_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_API_KEY", "a-canary-of-the-key")
    console.log_line({"path": "/a-canary-of-the-key", "seconds": float("nan"), "text": "琴\ud800\x1b[31m"})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == '{"path": "/…", "seconds": null, "text": "琴\\ud800\\u001b[31m"}\n'


def test_the_metrics(shelf: Path) -> None:
    with serving(shelf, "violin") as server, server.client() as client:
        client.post(CHAT, json=ASK)
        client.post(CHAT, json={**ASK, "model": "made up"})
        client.get("/made/up")
        text = client.get("/metrics").text
    found = dict(re.findall(r"^(luthier_\w+(?:\{.*\})?) (\S+)$", text, flags=re.MULTILINE))
    chat = f'path="{CHAT}"'
    assert found[f'luthier_requests_total{{model="violin",{chat},status="200"}}'] == "1.0"
    assert found[f'luthier_requests_total{{model="",{chat},status="404"}}'] == "1.0"
    assert found['luthier_requests_total{model="",path="",status="404"}'] == "1.0"
    assert found['luthier_tokens_total{kind="prompt",model="violin"}'] == "22.0"
    assert found['luthier_tokens_total{kind="completion",model="violin"}'] == "12.0"
    assert found["luthier_first_token_seconds_count"] == found["luthier_token_seconds_count"] == "1.0"
    assert (found["luthier_waiting"], found["luthier_running"], found["luthier_models"]) == ("0.0", "0.0", "2.0")


def test_health(server: Running) -> None:
    with server.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"ready": True}


def test_the_memory_it_may_take_is_said(server: Running) -> None:
    """Of the tiny model, where a token's keys and values are 512 bytes, and the vocabulary is 400."""
    now = mock.Mock(return_value=500_000_000)
    with mock.patch("torch.cuda.memory_allocated", now):
        said = describe_memory(server.models.batcher)
    assert said == (
        "500 MB now, about 1.6 GB under load: 1.1 GB for earlier requests (--cache), "
        "1 MB for 4 answers of 128 tokens (--max-batch)"
    )
