"""From results to figures, and from figures to a table that people read and a JSON file that programs read."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Entry
from benchmarks.task import Result
from luthier.report import words

AGREEMENT = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 1e-2}
"""Largest relative difference of two first losses that still counts as rounding."""

COLUMNS = (
    "contender",
    "dtype",
    "samples/s",
    "ratio",
    "of the limit",
    "tokens/s",
    "labelled/s",
    "peak memory",
    "first loss",
    "last loss",
    "notes",
)
BRIEF_COLUMNS = ("contender", "dtype", "samples/s", "ratio", "of the limit", "peak memory")


@dataclass(frozen=True)
class Figures:
    """Medians over an entry's runs, a second of measured steps; `first_loss` is that of the warm-up step."""

    samples: float
    tokens: float
    labelled: float
    peak_bytes: float
    first_loss: float | None
    last_loss: float | None


def figures(results: Sequence[Result]) -> Figures:
    def median(value: Callable[[Result], float]) -> float:
        return statistics.median(map(value, results))

    losses = results[-1].losses
    return Figures(
        samples=median(lambda r: r.rows / r.seconds),
        tokens=median(lambda r: r.tokens / r.seconds),
        labelled=median(lambda r: r.labelled / r.seconds),
        peak_bytes=median(lambda r: r.peak_bytes),
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
    )


@dataclass(frozen=True)
class JobReport:
    """One job's entries, and the words above its table. `baseline`: the title of the entry that ratios refer to."""

    name: str
    heading: str
    entries: Sequence[Entry]
    baseline: str

    def rows(self) -> list[list[str]]:
        """Cells of `COLUMNS`, one row for each entry that ran or failed."""
        done = {entry.title: figures(entry.results) for entry in self.entries if entry.results}
        limits = {entry.dtype: done[entry.title] for entry in self.entries if entry.name == "limit" and entry.results}
        return [
            _cells(entry, done[entry.title], done.get(self.baseline), limits.get(entry.dtype))
            if entry.results
            else [entry.name, entry.dtype, *["–"] * (len(COLUMNS) - 3), entry.trouble]
            for entry in self.entries
            if entry.results or entry.trouble
        ]

    def brief_rows(self) -> list[list[str]]:
        """Cells of `BRIEF_COLUMNS`, for a screen 80 characters wide."""
        kept = [COLUMNS.index(column) for column in BRIEF_COLUMNS]
        return [[cells[index] for index in kept] for cells in self.rows()]

    def loss_check(self) -> tuple[bool, str]:
        """Whether all that trained the same tokens began with the same loss, and the sentence that says so."""
        ran = [entry for entry in self.entries if entry.results and entry.results[-1].losses]
        same = [entry for entry in ran if entry.results[-1].same_labels]
        others = [entry.title for entry in ran if entry not in same]
        aside = f" On other tokens: {', '.join(others)}." if others else ""
        if len(same) < 2:
            return True, f"Loss check: fewer than two trained the same tokens.{aside}"
        first = {entry.title: entry.results[-1].losses[0] for entry in same}
        middle = statistics.median(first.values())
        off = [
            f"{entry.title} {first[entry.title]:.5f}"
            for entry in same
            if not abs(first[entry.title] / middle - 1) <= AGREEMENT[entry.dtype]  # also true of NaN
        ]
        if off:
            return False, f"Loss check FAILED: the first loss is {middle:.5f}, but {', '.join(off)}.{aside}"
        widest = max(abs(loss / middle - 1) for loss in first.values())
        return True, f"Loss check: {', '.join(first)} begin at {middle:.5f}, within {widest:.1e} of it.{aside}"

    def markdown(self) -> str:
        head = [f"## {self.name}", "", self.heading, "", f"Ratio: samples/s against {self.baseline}.", ""]
        table = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *self.rows())]
        return "\n".join([*head, *table, "", self.loss_check()[1], ""])

    def to_json(self) -> dict[str, Any]:
        entries = [
            {**asdict(entry), "figures": asdict(figures(entry.results)) if entry.results else None}
            for entry in self.entries
        ]
        return {"job": self.name, "heading": self.heading, "baseline": self.baseline, "entries": entries}


def _cells(entry: Entry, own: Figures, baseline: Figures | None, limit: Figures | None) -> list[str]:
    return [
        entry.name,
        entry.dtype,
        _rate(own.samples),
        f"{own.samples / baseline.samples:.2f} ×" if baseline else "–",
        f"{own.samples / limit.samples:.0%}" if limit else "–",
        _rate(own.tokens),
        _rate(own.labelled),
        words.size(own.peak_bytes) if own.peak_bytes else "–",
        _loss(own.first_loss),
        _loss(own.last_loss),
        "; ".join([*entry.results[-1].notes, *filter(None, [entry.trouble])]),
    ]


def brief(entry: Entry) -> str:
    """An entry's last run in a few words."""
    if entry.trouble:
        return f"failed: {entry.trouble}"
    last = entry.results[-1]
    return f"{_rate(last.rows / last.seconds)} samples/s, {words.duration(last.seconds)} for {last.rows} rows"


def _rate(a_second: float) -> str:
    """1,234 or 12.3 or 0.39"""
    return f"{a_second:,.0f}" if a_second >= 100 else f"{a_second:.3g}"


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def write(folder: Path, facts: dict[str, Any], reports: Sequence[JobReport]) -> None:
    """`results.json` and `results.md`."""
    content = {**facts, "jobs": [report.to_json() for report in reports]}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    above = [f"# Benchmark of {facts['date']}", "", facts["summary"], ""]
    page = "\n".join([*above, *(report.markdown() for report in reports)])
    (folder / "results.md").write_text(page, encoding="utf-8")
