from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.data.prepare import Gathered, gather
from luthier.recipe.schema import DataSettings

Read = Callable[..., Gathered]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Rows, as (question, answer) or as they stand in a file, read as training would; none held out unless asked."""
    monkeypatch.chdir(tmp_path)

    def read(*rows: Any, name: str = "rows.jsonl", **settings: Any) -> Gathered:
        write(Path(name), *rows)
        return gather(DataSettings(**{"train": name, "holdout": 0, **settings}), seed=42)

    return read


@pytest.fixture
def written() -> Callable[..., Path]:
    return write


def write(file: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, dict) else {"instruction": row[0], "output": row[1]} for row in rows]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file
