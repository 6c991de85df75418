"""How a model, adapter or run folder is spoilt for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

AGAIN = "fetch or copy it again"
Spoil = Callable[[Path], object]


class Bomb:
    """Unpickled, it writes a file: what a hostile weight file would do."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def cut(file: Path, end: int | None) -> None:
    file.write_bytes(file.read_bytes()[:end])


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)
