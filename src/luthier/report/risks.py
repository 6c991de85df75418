"""What a reader of the page should watch: a list of small functions, each of which finds one risk or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.report import words

FEW = 20  # held-out rows below which their mean swings with single rows
Found = tuple[str, dict[str, str]] | None
"""The key of its words, and what is filled in."""


@dataclass(frozen=True)
class Run:
    """What is known of a run: its record (empty until it is finished) and its timeline."""

    record: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record.get("result", {})
        return found

    @property
    def ledger(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record.get("data", {}).get("ledger", {})
        return found


def find(record: dict[str, Any] | None, events: list[dict[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    """Every risk that the run's files show, the gravest first."""
    run = Run(record or {}, events)
    return [found for risk in RISKS if (found := risk(run)) is not None]


def _turned(run: Run) -> Found:
    """Held-out loss fell and rose again by more than a hundredth."""
    measured = [e for e in run.events if e["event"] == "evaluation" and e["heldout_loss"] is not None]
    if not measured:
        return None
    best, last = min(measured, key=lambda event: event["heldout_loss"]), measured[-1]["heldout_loss"]
    if best is measured[0] or last <= 1.01 * best["heldout_loss"]:
        return None
    loss = words.loss(best["heldout_loss"])
    return "risk_turned", {"step": f"{best['step']:,}", "loss": loss, "last": words.loss(last)}


def _gap(run: Run) -> Found:
    train, heldout = run.result.get("train_loss"), run.result.get("heldout_loss_after")
    if train is None or heldout is None or train >= heldout / 2:
        return None
    return "risk_gap", {"train": words.loss(train), "heldout": words.loss(heldout)}


def _repeated(run: Run) -> Found:
    count = run.record.get("data", {}).get("repeated", 0)
    return ("risk_repeated", {"count": f"{count:,}"}) if count else None


def _conflicts(run: Run) -> Found:
    count = run.ledger.get("conflicts", 0)
    return ("risk_conflicts", {"count": f"{count:,}"}) if count else None


def _no_heldout(run: Run) -> Found:
    return ("risk_no_heldout", {}) if run.ledger and not run.ledger["heldout"] else None


def _few_heldout(run: Run) -> Found:
    rows = run.ledger.get("heldout", 0)
    return ("risk_few_heldout", {"rows": str(rows)}) if 0 < rows < FEW else None


def _endless(run: Run) -> Found:
    probability = run.result.get("end_probability_after")
    if probability is None or probability >= 0.5:
        return None
    return "risk_endless", {"probability": f"{probability:.0%}"}


def _hurt(run: Run) -> Found:
    """More than a quarter of the rows, where the mean says that all is well."""
    rows = measured(run.record)
    count = sum(row["after"] > row["before"] for row in rows)
    before, after = run.result.get("heldout_loss_before"), run.result.get("heldout_loss_after")
    if before is None or after is None or after >= before or count <= len(rows) / 4:
        return None
    return "risk_hurt", {"count": f"{count:,}", "rows": f"{len(rows):,}"}


def _dropped(run: Run) -> Found:
    """More than a twentieth of the rows."""
    count, read = run.ledger.get("dropped", 0), run.ledger.get("read", 0)
    return ("risk_dropped", {"count": f"{count:,}", "read": f"{read:,}"}) if count > read / 20 else None


def _skipped(run: Run) -> Found:
    count = sum(event["event"] == "skip" for event in run.events)
    return ("risk_skipped", {"count": f"{count:,}"}) if count else None


RISKS: tuple[Callable[[Run], Found], ...] = (
    _turned,
    _gap,
    _repeated,
    _conflicts,
    _no_heldout,
    _endless,
    _hurt,
    _dropped,
    _skipped,
    _few_heldout,
)


def measured(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The held-out rows with a finite loss before and after."""
    rows = record.get("heldout", {}).get("measured", [])
    return [row for row in rows if row["before"] is not None and row["after"] is not None]
