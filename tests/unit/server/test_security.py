"""Promises of docs/security.md: who can reach a server, and what it lets them do."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, serving

from luthier.cli.serve import check
from luthier.errors import InputError, Problem
from luthier.server.app import read_page
from luthier.server.door import Rules

ASK: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
CHAT = "/v1/chat/completions"
KEY = "a-canary-key-of-twenty"


def message(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


def test_a_page_of_elsewhere_cannot_use_a_local_server(server: Running) -> None:
    """Neither read an answer, nor make the model work unseen with a form or `fetch(..., {mode: "no-cors"})`."""
    with server.client() as client:
        for origin in ("https://example.org", "null", "http://127.0.0.1:9", "http://localhost.example.org"):
            what = f"Pages of {origin!r} may not use this server. Start it with --allow-origin to let them."
            assert message(client.post(CHAT, json=ASK, headers={"Origin": origin})) == (403, what)
            preflight = client.options(CHAT, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
            assert preflight.status_code == 403
            assert [name for name in preflight.headers if name.startswith("access-control")] == []
        assert client.post(CHAT, json=ASK, headers={"Origin": server.url}).status_code == 200
        simple = client.post(CHAT, content=json.dumps(ASK), headers={"Content-Type": "text/plain"})
        assert simple.status_code == 400


def test_a_name_that_was_made_to_point_here_is_refused(server: Running) -> None:
    with server.client() as client:
        for host in ("example.org", "example.org:8000", "127.0.0.1.example.org", "[::1", ""):
            assert client.get("/v1/models", headers={"Host": host}).status_code in (400, 403), host
        what = "This server is not 'example.org'. Ask it as 127.0.0.1, or start it with --allow-host."
        assert message(client.get("/", headers={"Host": "example.org:8000"})) == (403, what)
        for host in ("localhost", "localhost:1", "127.0.0.1", "[::1]:8000"):
            assert client.get("/health", headers={"Host": host}).status_code == 200


def test_origins_and_names_that_are_allowed_come_in(shelf: Path) -> None:
    page = "https://chat.example.org"
    with (
        serving(shelf, rules=Rules(hosts=("proxy.example.org",), origins=(page,))) as server,
        server.client() as client,
    ):
        answer = client.post(CHAT, json=ASK, headers={"Origin": page, "Host": "proxy.example.org"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page)
        preflight = {"Origin": page, "Access-Control-Request-Method": "POST"}
        assert client.options(CHAT, headers=preflight).status_code == 200
        assert client.post(CHAT, json=ASK, headers={"Origin": "https://example.org"}).status_code == 403


def test_with_a_key_nothing_is_told_without_it(shelf: Path) -> None:
    with serving(shelf, rules=Rules(key=KEY)) as server, server.client() as client:
        assert [client.get(path).status_code for path in ("/", "/health", "/ready")] == [200, 200, 200]
        what = "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`."
        for path in ("/v1/models", "/v1/models/base", "/v1/adapters", "/metrics", "/nowhere", "/health/x", "/docs"):
            assert message(client.get(path)) == (401, what), path
        for given in (f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", "Bearer", f"Basic {KEY}", "Bearer ÿ", KEY):
            refused = client.post(CHAT, json=ASK, headers={"Authorization": given.encode("latin-1")})
            assert message(refused) == (401, what)
            assert refused.headers["www-authenticate"] == "Bearer"
        assert client.post(CHAT, json=ASK, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert KEY not in json.dumps(server.lines)


def test_beyond_this_machine_a_server_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert not Rules(host).local
        with pytest.raises(InputError) as raised:
            check(local=Rules(host).local, key=None, adapters=None)
        assert raised.value.problems == (
            Problem(
                "--host",
                "beyond this machine the server needs a key",
                "set LUTHIER_API_KEY to a long random text, which clients then send",
            ),
        )
        check(local=False, key=KEY, adapters=None)
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        assert Rules(host).local
        check(local=True, key=None, adapters=None)
    for key in ("short", "with a space in it", "ключ-ключ-ключ", "line\nbreak-line"):
        with pytest.raises(InputError, match="at least 8 printable ASCII characters without a space"):
            check(local=True, key=key, adapters=None)


def test_an_adapter_is_added_from_the_folder_of_adapters_alone(shelf: Path, folder_of_adapters: Path) -> None:
    (folder_of_adapters / "link").symlink_to(shelf / "lute", target_is_directory=True)
    (folder_of_adapters / "run").mkdir()
    (folder_of_adapters / "run" / "adapter").symlink_to(shelf / "lute", target_is_directory=True)
    with serving(shelf, folder=folder_of_adapters) as server, server.client() as client:
        for folder in ("..", ".", "", str(shelf / "lute"), "../shelf/lute", "spare/../spare", "spare\0", "link", "run"):
            response = client.post("/v1/adapters", json={"folder": folder, "name": "x"})
            assert response.json()["error"]["code"] == "adapter_not_found", folder
        assert client.post("/v1/adapters", json={"folder": "spare"}).status_code == 201
        assert message(client.get("/v1/adapters", headers={"Origin": "https://example.org"}))[0] == 403


def test_a_body_has_a_limit(shelf: Path) -> None:
    """Also one that does not say how long it is, and one that never ends."""
    rules = Rules(body_bytes=1000, body_seconds=0.3)
    with serving(shelf, rules=rules) as server, server.client() as client:
        long = json.dumps({**ASK, "messages": [{"role": "user", "content": "x" * 1000}]}).encode()
        headers = {"Content-Type": "application/json"}
        for body in (long, iter([long])):
            refused = client.post(CHAT, content=body, headers=headers)
            assert message(refused) == (413, "The body is longer than 0.000953674 MiB.")
            assert refused.json()["error"]["code"] == "body_too_long"
        assert client.post(CHAT, json=ASK).status_code == 200
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            slow.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 90\r\n\r\n{{".encode())
            answer = b"".join(iter(lambda: slow.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"The body did not come in time." in answer


def test_no_path_leads_to_a_file(server: Running) -> None:
    with server.client() as client:
        for path in (
            "/page/index.html",
            "/../pyproject.toml",
            "/%2e%2e/etc/passwd",
            "/static/x",
            "/v1/models/../../etc",
        ):
            assert client.get(path).status_code == 404, path


def test_the_chat_page_may_run_its_own_script_and_load_nothing(server: Running) -> None:
    with server.client() as client:
        page = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert sorted(policy) == [
        "base-uri", "connect-src", "default-src", "form-action", "frame-ancestors", "img-src", "script-src",
        "style-src",
    ]  # fmt: skip
    assert {policy[name] for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert (policy["connect-src"], policy["img-src"]) == ("'self'", "data:")
    assert [re.fullmatch(r"'sha256-[\w+/=]{44}'", policy[name]) is None for name in ("script-src", "style-src")] == [
        False,
        False,
    ]
    assert page.text == read_page()[0]
    assert re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)""", page.text) == ["data:,"]
    assert re.findall(r"https?:|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=\"", page.text) == []
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["x-content-type-options"] == "nosniff"
