"""report.html: one page that shows what a run did."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from luthier.recipe.schema import Section
from luthier.report import curve, languages, risks, words
from luthier.report.languages import ENGLISH, Language
from luthier.report.record import RunFolder, timeline
from luthier.report.templating import shown, write_page

ROWS_SHOWN = 5  # of the most helped, and of the most hurt
# What `plan` and `result` of run.json may both hold, and how it is written.
PLANNED = {
    "peak_memory_bytes": words.size,
    "seconds": words.duration,
    "total_seconds": words.duration,
    "computed_tokens": "{:,.0f}".format,
    "real_tokens": "{:,.0f}".format,
    "steps": "{:,.0f}".format,
}


def write_report(run: RunFolder, path: Path | None = None, language: Language | None = None) -> Path:
    """Write the page of a run, finished or not, to `path` (default: the run's report.html).

    `language`: what the environment says, if None. Raises RunError.
    """
    language = language or languages.pick()
    return write_page(path or run.report_file, "report.html.jinja", language, _contents(run, language))


@dataclass(frozen=True)
class Verdict:
    """What a run came to, in one sentence."""

    text: str
    tone: Literal["better", "worse", "open"]


def verdict(result: dict[str, Any], language: Language = ENGLISH) -> Verdict:
    """The sentence for the "result" of a run's record."""
    before, after = result["heldout_loss_before"], result["heldout_loss_after"]
    if before is None:
        return Verdict(language.say("no_heldout", loss=words.loss(result["train_loss"])), "open")
    if after is None:
        return Verdict(language.say("no_value", was=words.loss(before)), "worse")
    was, now = words.loss(before), words.loss(after)
    if abs(after - before) < 0.005 * before or was == now:
        return Verdict(language.say("unchanged", was=was, now=now), "open")
    key: Literal["fell", "rose"] = "fell" if after < before else "rose"
    text = language.say(key, was=was, now=now, change=words.change(before, after))
    return Verdict(text, "better" if key == "fell" else "worse")


def _contents(run: RunFolder, language: Language) -> dict[str, Any]:
    recipe, record, events = run.read_recipe(), run.record(), timeline(run.events())
    not_finished = language.say("not_finished", state=language.recorded(run.state()))
    settings = settings_of(recipe, language)
    return {
        "name": run.name,
        "folder": words.typed(run.path),
        "again": words.typed(run.path.with_name(f"{run.path.name}-again")),
        "recipe_file": words.typed(run.recipe_file),
        "verdict": verdict(record["result"], language) if record else Verdict(not_finished, "open"),
        "recipe": recipe,
        "record": record,
        "scores": _scores(record["result"]) if record else [],
        "risks": risks.find(record, events),
        "plot": curve.draw({run.name: events}, language),
        "evaluations": [event for event in events if event["event"] == "evaluation"],
        "answers": [answer_with_likelihood(answer) for answer in record["answers"]] if record else [],
        "heldout": _heldout(record) if record else None,
        "fates": _fates(record["data"]["ledger"]) if record else [],
        "samples": record.get("samples", []) if record else [],
        "choices": run.read_resolved(),
        "asked": [setting for setting in settings if not setting.default],
        "defaults": [setting for setting in settings if setting.default],
        "planned": _planned(record.get("plan") or {}, record["result"]) if record else [],
        "outcome": lambda outcome: language.words.get(f"outcome_{outcome}", outcome),
        "show": lambda value: shown(value, language),
        "day": datetime.fromtimestamp(events[-1]["time"]).strftime("%Y-%m-%d") if events else None,
    }


def _scores(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Words' key, before, after."""
    loss = result["heldout_loss_before"], result["heldout_loss_after"]
    if loss[0] is None:
        return []
    ending = result.get("end_probability_before"), result.get("end_probability_after")
    scores = [
        ("heldout_loss", *map(words.loss, loss)),
        ("perplexity", *map(words.perplexity, loss)),
        ("end_probability", *map(words.percent, ending)),
    ]
    return [(key, before, after) for key, before, after in scores if before != "–" or after != "–"]


def answer_with_likelihood(answer: dict[str, Any]) -> dict[str, Any]:
    """With how likely each token of its reference is under both models, on average (the geometric mean)."""
    losses = answer.get("reference_loss") or {}
    likelihood = [None if (loss := losses.get(which)) is None else math.exp(-loss) for which in ("base", "tuned")]
    return {**answer, "likelihood": None if None in likelihood else likelihood}


def _heldout(record: dict[str, Any]) -> dict[str, Any] | None:
    """The measured rows, those most helped first."""
    rows = [{**row, "gain": row["before"] - row["after"]} for row in risks.measured(record)]
    if not rows:
        return None
    rows.sort(key=lambda row: -row["gain"])
    up, down = max(rows[0]["gain"], 0), max(-rows[-1]["gain"], 0)
    return {
        "rows": rows,
        "of": record["heldout"]["rows"],
        "span": (up + down) or 1,
        "zero": 100 * up / ((up + down) or 1),
        "better": sum(row["gain"] > 0 for row in rows),
        "worse": sum(row["gain"] < 0 for row in rows),
        "most_helped": [row for row in rows if row["gain"] > 0][:ROWS_SHOWN],
        "most_hurt": [row for row in reversed(rows) if row["gain"] < 0][:ROWS_SHOWN],
    }


def _fates(ledger: dict[str, Any]) -> list[tuple[str, str, int]]:
    """How the rows that were read ended: css class, words' key, count; with what the ledger fails to explain."""
    fates = [
        ("used", "used", ledger["used"]),
        ("heldout", "held_out", ledger["heldout"]),
        ("duplicate", "duplicate", ledger["duplicate"]),
        ("dropped", "dropped", ledger["dropped"]),
    ]
    unexplained = ledger["read"] - sum(count for _, _, count in fates)
    return [fate for fate in [*fates, ("unexplained", "unexplained", unexplained)] if fate[2]]


def _planned(plan: dict[str, Any], result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Words' key, planned, actual, by how much the plan was wrong; empty without a plan."""
    return [
        (f"plan_{name}", write(plan[name]), write(result[name]), words.change(result[name], plan[name]))
        for name, write in PLANNED.items()
        if plan.get(name) is not None and result.get(name)
    ]


@dataclass(frozen=True)
class Setting:
    name: str
    value: str
    default: bool


def settings_of(section: Section, language: Language, prefix: str = "") -> list[Setting]:
    """Every setting of the recipe by its dotted name."""
    found: list[Setting] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            found += settings_of(value, language, f"{prefix}{name}.")
        else:
            default = not field.is_required() and value == field.get_default(call_default_factory=True)
            found.append(Setting(prefix + name, shown(value, language), default))
    return found
