"""What every row becomes. Nothing after `formats.py` knows what the row looked like in its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant", "tool", "text"]

# U+FDD0 is a Unicode noncharacter, set aside for a program's own use: no text holds it by right. See `render.py`.
RESERVED = "\ufdd0"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row came from, for messages and the ledger: `rows.jsonl, line 17`.

    `unit` is "line" where rows are lines of the file (JSONL, CSV), else "row" (JSON array, Parquet). Both count from 1.
    """

    file: str
    number: int
    unit: Literal["row", "line"] = "row"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `train` matters for assistant turns only: False keeps it in the context without a label.

    Role "text" is a whole plain-text document: every token of it is trained and no chat template is used.
    `reasoning` is the thinking of a reasoning model, given apart from the answer (`reasoning_content`).
    """

    role: Role
    content: str
    train: bool = True
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: tuple[Message, ...]
    source: Source = field(compare=False)  # two rows with the same messages are duplicates, wherever they stand

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All that precedes the last assistant turn: rows with the same prompt never sit on both sides of a split."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=len(self.messages))
        return self.messages[:last]
