"""What docs/security.md promises of exports."""

from __future__ import annotations

import json
from pathlib import Path

from luthier.export import converter, push, record
from luthier.export.record import Exported


def test_the_converter_gets_no_code_to_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Config"}, "a": 1}', encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"b": 2}', encoding="utf-8")
    converter.forbid_code(tmp_path)
    found = [json.loads((tmp_path / name).read_bytes()) for name in ("config.json", "tokenizer_config.json")]
    assert found == [{"a": 1}, {"b": 2}]


def test_a_push_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# mine", encoding="utf-8")
    made = Exported(
        luthier="0.1.0",
        to="merged",
        weights="float32",
        run="/home/somebody/run",
        adapter_sha256="",
        base="a/b",
        revision=None,
        made="2026-11-26",
        seconds=1.0,
        figures=None,
        files=record.hashes(tmp_path),
    )
    record.write(tmp_path, made)
    assert "/home/somebody/run" in (tmp_path / record.FILE).read_text(encoding="utf-8")
    assert list(push.plan(tmp_path, "hf:me/mine", unverified=True).files) == ["README.md"]
