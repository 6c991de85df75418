"""What became of every row read: used, dropped, held out or duplicate. None is unaccounted for."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier import console
from luthier.data.conversation import Source
from luthier.secrets import masked

Outcome = Literal["used", "dropped", "heldout", "duplicate"]
OUTCOMES: tuple[Outcome, ...] = ("used", "dropped", "heldout", "duplicate")
EXAMPLES_PER_REASON = 3


@dataclass(frozen=True)
class Entry:
    """How one row ended.

    `reason` is the same text for all rows of a kind ("longer than 4096 tokens"); `detail` is this row's own
    ("5,120 tokens"). `cut`: the row is used or held out without the left end of its prompt. `too_long`: its tokens,
    where they are more than `data.max_length`.
    """

    source: Source
    outcome: Outcome
    reason: str = ""
    detail: str = ""
    cut: bool = False
    too_long: int | None = None

    @property
    def is_plain(self) -> bool:
        """Simply used: nothing to tell."""
        return self.outcome == "used" and not self.cut


@dataclass(frozen=True)
class Conflict:
    """One prompt with several answers: the places of its rows, in their order."""

    prompt: str
    answers: int
    sources: tuple[Source, ...]


@dataclass
class Ledger:
    """Opened with the rows read, closed by `check()` when each has its outcome.

    Only rows with something to tell are kept one by one; those simply used are a number.
    """

    conflicts: Sequence[Conflict] = ()
    read: int = field(default=0, init=False)
    entries: list[Entry] = field(default_factory=list, init=False)
    _ended: Counter[Outcome] = field(default_factory=Counter, init=False)
    _open: dict[tuple[str, str], array[int]] = field(default_factory=dict, init=False)
    """Of each file and unit, by number: rows without an outcome. A million rows take 4 MB."""

    def open(self, sources: Iterable[Source]) -> None:
        """Rows that were read. May be called for one file after another."""
        for source in sources:
            rows = self._open.setdefault((source.file, source.unit), array("I"))
            if len(rows) <= source.number:
                rows.extend(array("I", bytes(rows.itemsize * (source.number + 1 - len(rows)))))
            rows[source.number] += 1
            self.read += 1

    def add(self, entry: Entry) -> None:
        """A row's end. AssertionError if it was never read, or ended before: that is a mistake of Luthier."""
        source = entry.source
        rows = self._open.get((source.file, source.unit), array("I"))
        if source.number >= len(rows) or not rows[source.number]:
            raise AssertionError(f"{source} was never read, or has an outcome already")
        rows[source.number] -= 1
        self._ended[entry.outcome] += 1
        if not entry.is_plain:
            self.entries.append(entry)

    def check(self) -> None:
        """AssertionError unless used + dropped + heldout + duplicate == read, row by row."""
        lost = [
            f"{file}, {unit} {number}"
            for (file, unit), rows in self._open.items()
            for number in range(len(rows))
            if rows[number]
        ]
        if lost or self._ended.total() != self.read:
            raise AssertionError(f"{len(lost)} rows have no outcome, the first is {lost[0] if lost else 'unknown'}")

    def counts(self) -> dict[str, int]:
        """read = used + dropped + heldout + duplicate; `cut` rows are among the used (or held out) ones."""
        counts: dict[str, int] = {outcome: self._ended[outcome] for outcome in OUTCOMES}
        return {"read": self.read, **counts, "cut": sum(entry.cut for entry in self.entries)}

    def reasons(self) -> dict[str, int]:
        """How many rows for each reason there was not to use a row as it is. Being held out needs none."""
        return dict(Counter(entry.reason for entry in self.entries if entry.reason))

    def to_json(self) -> dict[str, Any]:
        """`data.ledger` of run.json: counts, prompts with several answers, reasons, a few places for each."""
        examples = [
            {"where": str(entry.source), "outcome": entry.outcome, "reason": _because(entry)}
            for chosen in self._examples().values()
            for entry in chosen
        ]
        examples += [_conflict_line(conflict) for conflict in self.conflicts[:EXAMPLES_PER_REASON]]
        counts = {**self.counts(), "conflicts": len(self.conflicts)}
        return {**counts, "reasons": self.reasons(), "examples": examples}

    def write(self, path: Path) -> None:
        """ledger.jsonl: a line for each row that was not simply used, then one for each prompt in conflict."""
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for entry in self.entries:
                line = {"where": str(entry.source), "outcome": entry.outcome, "reason": _because(entry)}
                file.write(masked(json.dumps({**line, "cut": entry.cut}, ensure_ascii=False)) + "\n")
            for conflict in self.conflicts:
                file.write(masked(json.dumps(_conflict_line(conflict), ensure_ascii=False)) + "\n")

    def show(self) -> None:
        """A table: each outcome with its reasons, how many rows, and where the first of them stand."""
        rows: list[tuple[str, str, str, str]] = [("read", f"{self.read:,}", "", "")]
        plain = self._ended["used"] - sum(entry.outcome == "used" for entry in self.entries)
        rows.append(("used", f"{plain:,}", "", ""))
        counted = Counter((entry.outcome, entry.cut, entry.reason) for entry in self.entries)
        for (outcome, cut, reason), entries in self._examples().items():
            name = f"{outcome}, cut" if cut else outcome
            places = "\n".join(_place(entry) for entry in entries)
            rows.append((name, f"{counted[outcome, cut, reason]:,}", reason, places))
        console.table(("rows", "count", "why", "for example"), rows, title="Ledger")

    def warn(self) -> None:
        """Prompts with several answers."""
        if self.conflicts:
            first = self.conflicts[0]
            places = ", ".join(map(str, first.sources[:EXAMPLES_PER_REASON]))
            console.warn(
                f"{len(self.conflicts):,} prompts have several different answers, all of them kept. "
                f"For example {first.prompt[:60]!r}: {places}"
            )

    def _examples(self) -> dict[tuple[Outcome, bool, str], list[Entry]]:
        chosen: dict[tuple[Outcome, bool, str], list[Entry]] = {}
        for entry in self.entries:
            same = chosen.setdefault((entry.outcome, entry.cut, entry.reason), [])
            if len(same) < EXAMPLES_PER_REASON:
                same.append(entry)
        return dict(sorted(chosen.items(), key=lambda item: OUTCOMES.index(item[0][0])))


def _because(entry: Entry) -> str:
    return f"{entry.reason} ({entry.detail})" if entry.detail else entry.reason


def _place(entry: Entry) -> str:
    """Short, for a table cell: without the folder."""
    place = f"{Path(entry.source.file).name}, {entry.source.unit} {entry.source.number}"
    return f"{place} ({entry.detail})" if entry.detail else place


def _conflict_line(conflict: Conflict) -> dict[str, str]:
    where = "; ".join(map(str, conflict.sources))
    return {"where": where, "outcome": "conflict", "reason": f"{conflict.answers} different answers to one prompt"}
