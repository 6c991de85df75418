"""report.html: one page that shows what a run did. No script, no network: it opens from a disk and prints.

Data and answers are hostile text. Jinja escapes all of it, and the page's own policy forbids scripts and loading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from luthier.recipe.schema import Section
from luthier.report import curve, disk, words
from luthier.report.record import RunFolder, timeline
from luthier.secrets import masked


def write_report(run: RunFolder, path: Path | None = None) -> Path:
    """Write the page of a run, finished or not, to `path` (default: the run's report.html). Raises RunError."""
    page = path or run.report_file
    # A lone surrogate in an answer cannot be UTF-8; as a character reference the browser shows its replacement sign.
    disk.replace(page, masked(_render(run)).encode(errors="xmlcharrefreplace"))
    return page


@dataclass(frozen=True)
class Verdict:
    """What a run came to, in one sentence."""

    text: str
    tone: Literal["better", "worse", "open"]


def verdict(result: dict[str, Any]) -> Verdict:
    """The sentence for the "result" of a run's record."""
    before, after = result["heldout_loss_before"], result["heldout_loss_after"]
    if before is None:
        trained = f"Training loss ended at {words.loss(result['train_loss'])}"
        return Verdict(f"{trained}; no rows were held out, so nothing shows how it does on new ones", "open")
    if after is None:
        return Verdict(f"Held-out loss was {words.loss(before)} before training and has no value after it", "worse")
    was, now = words.loss(before), words.loss(after)
    if abs(after - before) < 0.005 * before or was == now:
        return Verdict(f"Held-out loss hardly changed: {was} before, {now} after", "open")
    if after < before:
        return Verdict(f"Held-out loss fell from {was} to {now} ({words.change(before, after)})", "better")
    rose = f"Held-out loss rose from {was} to {now} ({words.change(before, after)})"
    return Verdict(f"{rose}: on new rows this model does worse than before", "worse")


def _render(run: RunFolder) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("luthier.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        count=lambda number: f"{number:,}", loss=words.loss, size=words.size, duration=words.duration
    )
    return templates.get_template("report.html.jinja").render(_contents(run))


def _contents(run: RunFolder) -> dict[str, Any]:
    recipe, record, events = run.read_recipe(), run.record(), timeline(run.events())
    state = run.state()
    evaluations = [event for event in events if event["event"] == "evaluation"]
    settings = _settings(recipe)
    return {
        "name": run.name,
        "folder": words.typed(run.path),
        "recipe_file": words.typed(run.recipe_file),
        "verdict": verdict(record["result"]) if record else Verdict(f"Not finished: {state}", "open"),
        "recipe": recipe,
        "record": record,
        "finished": record is not None,
        "curve": curve.draw(events),
        "evaluations": evaluations,
        "turn": _turn(evaluations),
        "fates": _fates(record["data"]["ledger"]) if record else [],
        "choices": run.read_resolved(),
        "asked": [setting for setting in settings if not setting.default],
        "defaults": [setting for setting in settings if setting.default],
        "show": _show,
        "day": datetime.fromtimestamp(events[-1]["time"]).strftime("%Y-%m-%d") if events else None,
    }


def _turn(evaluations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation with the lowest held-out loss, where it fell to that and rose again by more than a hundredth."""
    measured = [event for event in evaluations if event["heldout_loss"] is not None]
    if not measured:
        return None
    best = min(measured, key=lambda event: event["heldout_loss"])
    rose_again = measured[-1]["heldout_loss"] > 1.01 * best["heldout_loss"]
    return best if rose_again and best is not measured[0] else None


def _fates(ledger: dict[str, Any]) -> list[tuple[str, str, int]]:
    """How the rows that were read ended: css class, words, count. What the ledger fails to explain is shown too."""
    fates = [
        ("used", "trained on", ledger["used"]),
        ("heldout", "held out", ledger["heldout"]),
        ("duplicate", "duplicate", ledger["duplicate"]),
        ("dropped", "dropped", ledger["dropped"]),
    ]
    unexplained = ledger["read"] - sum(count for _, _, count in fates)
    return [fate for fate in [*fates, ("unexplained", "unexplained", unexplained)] if fate[2]]


@dataclass(frozen=True)
class _Setting:
    name: str
    value: str
    default: bool


def _settings(section: Section, prefix: str = "") -> list[_Setting]:
    """Every setting of the recipe by its dotted name."""
    found: list[_Setting] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            found += _settings(value, f"{prefix}{name}.")
        else:
            default = not field.is_required() and value == field.get_default(call_default_factory=True)
            found.append(_Setting(prefix + name, _show(value), default))
    return found


def _show(value: Any) -> str:
    """A setting's value as a reader would write it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
