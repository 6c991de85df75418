"""A peer's environment, with venv and pip replaced by a record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import pytest

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.peers import environment, last_words
from luthier.errors import InputError, Problem

PEER = Contender("trl", "a peer", requirements=("trl==1.16.0",), gpu_requirements=("liger-kernel",))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run; one that holds "broken" fails."""
    made: list[list[str]] = []

    def call(command: list[str], stdout: IO[str], **_: object) -> int:
        made.append(command[1:])
        if command[2] == "venv":
            Path(command[-1]).mkdir(parents=True)
        stdout.write("ERROR: No matching distribution found\n\n")
        return int("broken" in command)

    monkeypatch.setattr("benchmarks.peers.subprocess.call", call)
    monkeypatch.setattr("benchmarks.peers.installed_torch", lambda: "2.13.0+cpu")
    return made


def test_it_is_made_once_with_luthiers_torch(tmp_path: Path, calls: list[list[str]]) -> None:
    folder = tmp_path / "peers" / "trl"
    python = environment("trl", PEER, folder, "cpu")
    assert python == folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    assert calls == [
        ["-m", "venv", "--clear", str(folder)],
        ["-m", "pip", "install", "trl==1.16.0", "torch==2.13.0"],
    ]
    assert environment("trl", PEER, folder, "cpu") == python
    assert len(calls) == 2


def test_other_requirements_install_it_again(tmp_path: Path, calls: list[list[str]]) -> None:
    folder = tmp_path / "trl"
    environment("trl", PEER, folder, "cpu")
    folder.rename(tmp_path / "moved")  # the record cannot clear a folder
    environment("trl", PEER, folder, "cuda")
    assert calls[-1] == ["-m", "pip", "install", "trl==1.16.0", "liger-kernel", "torch==2.13.0"]


def test_a_peer_may_want_its_own_torch(tmp_path: Path, calls: list[list[str]]) -> None:
    environment("llamafactory", CONTENDERS["llamafactory"], tmp_path / "lf", "cpu")
    assert calls[-1] == [
        *["-m", "pip", "install", "llamafactory==0.9.5"],
        *["torch==2.11.0", "torchaudio==2.11.0", "torchvision==0.26.0"],
    ]


def test_a_failed_install_says_why_and_is_tried_again(tmp_path: Path, calls: list[list[str]]) -> None:
    broken, folder = Contender("trl", "a peer", requirements=("broken",)), tmp_path / "trl"
    with pytest.raises(InputError) as caught:
        environment("trl", broken, folder, "cpu")
    what, fix = (
        "cannot be installed: ERROR: No matching distribution found",
        f"the whole output: {tmp_path / 'trl.log'}",
    )
    assert caught.value.problems == (Problem("trl", what, fix),)
    assert not (folder / "installed.json").exists()


def test_a_program_that_said_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n \n")
    assert last_words(tmp_path / "log") == "it said nothing"
