"""The converter's process, with a stand-in for llama.cpp's script: the real one is in tests/real."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.export import converter

COPIES = """
import pathlib, sys
folder, file = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3])
file.write_text((folder / "config.json").read_text())
"""


def test_folders_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-o out` is meant from where the command is typed, and the converter works in a folder of its own."""
    tool, work = tmp_path / "tool", tmp_path / "work"
    tool.mkdir()
    (tool / "convert_hf_to_gguf.py").write_text(COPIES, encoding="utf-8")
    (work / "merged").mkdir(parents=True)
    (work / "merged" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(converter, "install", lambda: tool)
    monkeypatch.chdir(work)
    converter.to_gguf(Path("merged"), Path("model.gguf"), "f16", name="mine")
    assert (work / "model.gguf").read_text(encoding="utf-8") == "{}"
