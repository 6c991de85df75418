"""Gathering what is wrong with a file, however much that is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luthier.errors import DataError, Problem

PROBLEMS_LISTED = 20


@dataclass
class Problems:
    """All problems of one file: the first ones in full, the others as a number."""

    file: str
    listed: list[Problem] = field(default_factory=list)
    more: int = 0

    def add(self, where: object, what: str, fix: str) -> None:
        if len(self.listed) < PROBLEMS_LISTED:
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
