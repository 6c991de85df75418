"""One page for several runs: their results, curves over each other, the settings that differ, answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.report import curve, languages, risks, words
from luthier.report.languages import Language
from luthier.report.page import Verdict, answer_with_likelihood, settings_of
from luthier.report.record import RunFolder, timeline
from luthier.report.templating import shown, write_page

FILE = "comparison.html"
COLOURS = 6


def write_comparison(runs: Sequence[RunFolder], path: Path | None = None, language: Language | None = None) -> Path:
    """Write the page that compares runs, finished or not, to `path` (default: beside the first). Raises RunError."""
    language = language or languages.pick()
    contents = _contents(_named(runs), language)
    return write_page(path or runs[0].path.parent / FILE, "compare.html.jinja", language, contents)


def _named(runs: Sequence[RunFolder]) -> dict[str, RunFolder]:
    """By their folders' names, or by their paths where two folders have one name."""
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else str(run.path): run for run in runs}


def _contents(runs: dict[str, RunFolder], language: Language) -> dict[str, Any]:
    records = {name: run.record() for name, run in runs.items()}
    finished = {name: record for name, record in records.items() if record is not None}
    timelines = {name: timeline(run.events()) for name, run in runs.items()}
    comparable = _same_rows(list(finished.values()))
    return {
        "title": " · ".join(runs),
        "verdict": _verdict(finished, len(runs), comparable, language),
        "comparable": comparable,
        "names": list(runs),
        "results": [
            _result(name, records[name], timelines[name], language.recorded(run.state())) for name, run in runs.items()
        ],
        "plot": curve.draw(timelines, language),
        "colours": COLOURS,
        "differing": _differing([_settings(run, language) for run in runs.values()]),
        "answers": _answers(finished),
    }


def _verdict(finished: dict[str, dict[str, Any]], runs: int, comparable: bool, language: Language) -> Verdict:
    losses = {name: record["result"]["heldout_loss_after"] for name, record in finished.items()}
    measured = {name: loss for name, loss in losses.items() if loss is not None}
    if not measured:
        return Verdict(language.say("no_best"), "open")
    if not comparable or len(measured) == 1:
        return Verdict(language.say("compared", count=runs), "open")
    best = min(measured, key=lambda name: measured[name])
    return Verdict(language.say("best_of", name=best, loss=words.loss(measured[best])), "better")


def _same_rows(records: Sequence[dict[str, Any]]) -> bool:
    """Whether the held-out losses were measured on the same tokens, as far as the records say."""
    told = [
        tuple((row["prompt"], row["labels"]) for row in record["heldout"]["measured"])
        for record in records
        if risks.measured(record)
    ]
    return len(set(told)) <= 1


def _result(name: str, record: dict[str, Any] | None, events: list[dict[str, Any]], state: str) -> dict[str, Any]:
    """What the table says of a run: words' key and text, those of an unfinished run from its events."""
    heldout = [event["heldout_loss"] for event in events if event["event"] == "evaluation"]
    result = record["result"] if record else {}
    before = result.get("heldout_loss_before", heldout[0] if heldout else None)
    after = result.get("heldout_loss_after", heldout[-1] if len(heldout) > 1 else None)
    cells = {
        "rows": f"{result['rows']:,}" if record else "–",
        "steps": f"{result['steps'] if record else max((e.get('step', 0) for e in events), default=0):,}",
        "time": words.duration(result["seconds"]) if record else "–",
        "peak_memory": words.size(result["peak_memory_bytes"]) if result.get("peak_memory_bytes") else "–",
        "training_loss": words.loss(result.get("train_loss")),
        "heldout_before": words.loss(before),
        "heldout_after": words.loss(after),
        "perplexity": words.perplexity(after),
        "end_probability": words.percent(result.get("end_probability_after")),
    }
    return {"name": name, "state": state, "cells": cells}


def _settings(run: RunFolder, language: Language) -> dict[str, str]:
    """Every setting by name, each automatic one as what was chosen."""
    asked = {setting.name: setting.value for setting in settings_of(run.read_recipe(), language)}
    chosen = {name: shown(choice.value, language) for name, choice in run.read_resolved().items()}
    return {name: value for name, value in {**asked, **chosen}.items() if name != "output"}


def _differing(settings: Sequence[dict[str, str]]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for some in settings for name in some)
    rows = [(name, [some.get(name, "–") for some in settings]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _answers(finished: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each question that several runs answered; the untouched model's answer where it is one and the same."""
    asked: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for name, record in finished.items():
        for answer in record["answers"]:
            told = {"name": name, **answer_with_likelihood(answer)}
            asked.setdefault((answer["prompt"], answer["system"]), []).append(told)
    return [
        {
            "prompt": prompt,
            "system": system,
            "base": told[0]["base"] if len({each["base"] for each in told}) == 1 else None,
            "reference": told[0]["reference"],
            "tuned": told,
        }
        for (prompt, system), told in asked.items()
        if len(told) > 1
    ]
