"""What the columns of the files hold, and which format they make."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from luthier.data.formats import Converted
from luthier.data.problems import describe
from luthier.data.sources import Rows

KINDS = {int: "number", float: "number", bool: "true or false", str: "text", list: "list", dict: "object"}


@dataclass
class Column:
    """`filled`: rows where it is neither missing, null nor empty. `longest`: characters of a text, items of a list."""

    name: str
    rows: int = 0
    filled: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    used: bool = True

    def see(self, value: Any) -> None:
        self.rows += 1
        if value is None or value == "" or value == []:
            return
        self.filled += 1
        self.kinds[KINDS.get(type(value), describe(value))] += 1
        if isinstance(value, str | list):
            self.longest = max(self.longest, len(value))


@dataclass(frozen=True)
class Format:
    """`fits`: for each format some row fits, how many rows do. `confidence`: the chosen one's share of rows, halved
    where another format fits as many."""

    file: str
    name: str
    reason: str
    rows: int
    fits: dict[str, int]

    @property
    def confidence(self) -> float:
        here = self.fits.get(self.name, 0)
        rival = any(count == here for name, count in self.fits.items() if name != self.name)
        return here / max(1, self.rows) / (2 if rival else 1)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "confidence": round(self.confidence, 4)}


@dataclass
class Schema:
    """Filled file by file: its `see` is what `gather` calls."""

    columns: dict[str, Column] = field(default_factory=dict)
    formats: list[Format] = field(default_factory=list)

    def see(self, rows: Rows, converted: Converted) -> None:
        choice = converted.format
        self.formats.append(Format(str(rows.path), choice.value, choice.reason, len(rows.rows), converted.fits))
        for _, row in rows.rows:
            for name, value in row.items():
                column = self.columns.get(name)
                if column is None:
                    column = self.columns[name] = Column(name)
                column.see(value)
        for name in converted.unused:
            if name in self.columns:
                self.columns[name].used = False

    def to_json(self) -> dict[str, Any]:
        return {
            "formats": [each.to_json() for each in self.formats],
            "columns": [asdict(column) | {"kinds": dict(column.kinds)} for column in self.columns.values()],
        }
