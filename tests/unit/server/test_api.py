"""OpenAI's API over HTTP, byte by byte where it matters."""

from __future__ import annotations

import json
from typing import Any

from serving import Running

ASK = {"model": "violin", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 6}


def test_smoke(server: Running) -> None:
    with server.client() as client:
        print(client.get("/v1/models").text)
        r = client.post("/v1/chat/completions", json=ASK)
        print(r.status_code, r.text)
        r = client.post("/v1/chat/completions", json={**ASK, "stream": True, "stream_options": {"include_usage": True}})
        print(r.status_code, r.headers, r.text)
        r = client.post("/v1/completions", json={"model": "base", "prompt": "Who", "logprobs": 2, "max_tokens": 3})
        print(r.status_code, r.text)
        for bad in ({}, {**ASK, "foo": 1, "tools": [1], "echo": True}, {**ASK, "temperature": "x", "n": 0, "zz": 1}):
            r = client.post("/v1/chat/completions", json=bad)
            print(r.status_code, r.text)
        r = client.post("/v1/completions", json={"model": "base", "prompt": {"a": 1}, "logprobs": 2, "max_tokens": 3})
        print(r.status_code, r.text)
        print(client.get("/metrics").text[:3000])
    print(json.dumps(server.lines, indent=1))
