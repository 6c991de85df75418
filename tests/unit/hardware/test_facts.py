from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.hardware import facts


@pytest.fixture
def refusing_hub() -> Iterator[str]:
    """A hub that answers every request with 403: it is there."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_hub_that_refuses_answers_and_one_that_is_gone_does_not(refusing_hub: str) -> None:
    found = facts.ask_hubs({"HF_ENDPOINT": refusing_hub, "MODELSCOPE_ENDPOINT": "http://127.0.0.1:1"})
    assert set(found) == {refusing_hub, "http://127.0.0.1:1"}
    assert found[refusing_hub] == ""
    assert "refused" in found["http://127.0.0.1:1"]


def test_an_address_that_is_none_is_told(refusing_hub: str) -> None:
    found = facts.ask_hubs({"HF_ENDPOINT": "hf-mirror.com", "MODELSCOPE_ENDPOINT": refusing_hub})
    assert found["hf-mirror.com"] == "unknown url type: 'hf-mirror.com'"


def test_the_newest_symbol_version_of_a_libstdcxx(tmp_path: Path) -> None:
    assert facts.newest_glibcxx(tmp_path) == 0
    (tmp_path / "libstdc++.so.6").write_bytes(b"\x7fELF GLIBCXX_3.4 GLIBCXX_3.4.9\0GLIBCXX_3.4.29\0CXXABI_1.3.13\0")
    assert facts.newest_glibcxx(tmp_path) == 29


def test_the_installed_torch_computes_on_the_cpu() -> None:
    torch = facts.look_at_torch()
    assert torch.problem == ""
    assert isinstance(torch.rates["cpu"]["float32"], float)


def test_a_torch_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "installed_torch", lambda: "")
    assert facts.look_at_torch() == facts.Torch(problem="it is not installed")


def test_libraries_against_the_versions_asked_for() -> None:
    assert facts._library("no-such-package", ">=1") == facts.Library("no-such-package", "", ">=1", fits=False)
    assert facts._library("pytest", ">=1").fits
    assert not facts._library("pytest", ">=1000").fits
