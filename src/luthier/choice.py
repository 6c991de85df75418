"""A value that Luthier chose, together with why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """An "auto" setting after it was resolved. Shown once to the user and kept in the run folder."""

    value: T
    reason: str
