"""Gathering what is wrong with a file, however much that is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luthier.data.conversation import Source
from luthier.errors import DataError, Problem

PROBLEMS_LISTED = 20


@dataclass
class Problems:
    """All problems of one file: the first ones in full, the others as a number.

    With `drop` a row that has one is left out instead, with the first of its problems (`data.bad_rows: drop`).
    """

    file: str
    drop: bool = False
    dropped: dict[Source, str] = field(default_factory=dict)
    listed: list[Problem] = field(default_factory=list)
    more: int = 0

    def add(self, where: Source | str, what: str, fix: str) -> None:
        """`where` is the row; or text, for what dropping a row cannot mend."""
        if self.drop and isinstance(where, Source):
            self.dropped.setdefault(where, what)
        elif len(self.listed) < PROBLEMS_LISTED:
            self.listed.append(Problem(str(where), what, fix))
        else:
            self.more += 1

    def raise_any(self) -> None:
        """Raise DataError if anything was added."""
        if self.listed:
            raise self.error()

    def error(self) -> DataError:
        rest = Problem(self.file, f"{self.more:,} more problems like these", "correct those above first")
        return DataError(*self.listed, *([rest] if self.more else []))


def describe(value: Any) -> str:
    """A JSON value in words: `the number 5`, `a list`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value:.6g}" if abs(value) < 1e300 else "a number"
    kinds: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")
