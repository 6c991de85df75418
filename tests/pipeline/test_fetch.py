"""`luthier fetch` as the user meets it, against the stand-in hub."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "hub"))
standin_module = importlib.import_module("standin")

COMMAND = """
import typer
from luthier.cli import main
from luthier.cli.fetch import fetch
main.app = typer.Typer()
main.app.command()(fetch)
main.main()
"""


@pytest.fixture
def standin() -> Iterator[Any]:
    server = standin_module.Standin()
    server.start()
    server.add_model("hf", "a/b", {"config.json": b"{}", "model.safetensors": b"w" * 2000})
    server.add_data("ms", "a/rows", {"rows.jsonl": b"{}\n"})
    yield server
    server.stop()


def luthier_fetch(tmp_path: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONUTF8": "1",
        "LUTHIER_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": endpoint,
        "MODELSCOPE_ENDPOINT": endpoint,
        "NO_PROXY": "127.0.0.1",
        "HF_TOKEN": "hf_secretsecret",
    }
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_a_model(tmp_path: Path, standin: Any) -> None:
    done = luthier_fetch(tmp_path, standin.url, "a/b")
    folder = tmp_path / "home" / "models" / "hf" / "a--b" / "main"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"fetching hf:a/b (0.0 MB) …\n{folder}\n"
    assert luthier_fetch(tmp_path, "http://127.0.0.1:9", "a/b").stdout == f"{folder}\n"


def test_data_as_json(tmp_path: Path, standin: Any) -> None:
    done = luthier_fetch(tmp_path, standin.url, "ms:a/rows", "--data", "--json")
    path = tmp_path / "home" / "data" / "ms" / "a--rows" / "master" / "rows.jsonl"
    assert json.loads(done.stdout) == {"ok": True, "ref": "ms:a/rows", "paths": [str(path)]}
    assert path.read_bytes() == b"{}\n"
    assert done.stderr == f"fetching ms:a/rows (0.0 MB) …\n{path}\n"


def test_an_error(tmp_path: Path, standin: Any) -> None:
    done = luthier_fetch(tmp_path, standin.url, "hf:a/none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "✗ hf:a/none: Hugging Face has no such model\n  → check the spelling, or try the other hub: ms:a/none\n"
    )
