from __future__ import annotations

import importlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for standin.py, whatever import mode pytest runs in
_standin = importlib.import_module("standin")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no account, proxy or other cache of the machine's user."""
    for variable in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "LUTHIER_HUB", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HF_HOME", "MODELSCOPE_CACHE", "MODELSCOPE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("luthier.hub.transfer.time.sleep", lambda seconds: None)
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "luthier"))
    return tmp_path / "luthier"


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Both hubs' endpoints at one stand-in server."""
    server = _standin.Standin()
    server.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    yield server
    server.stop()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> str:
    """Both endpoints at a port where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", closed)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", closed)
    return closed
