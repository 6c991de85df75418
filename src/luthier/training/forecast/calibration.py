"""Planned against actual: kept in each run's record, and for all of the user's runs in Luthier's cache folder."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier import console
from luthier.hub.cache import cache_dir
from luthier.report import words

FIGURES = ("peak_memory_bytes", "seconds", "total_seconds")
"""As `result` of run.json names them: `seconds` are those of the steps, `total_seconds` of the whole command."""
LATEST = 5  # runs that a plan is corrected by
Entry = dict[str, Any]


def figures(plan: Mapping[str, Any]) -> dict[str, Any]:
    """`plan` of run.json from that of `Plan.to_json`: figures under the names that `result` has them under."""
    spent, tokens = plan["seconds"] or {}, plan["tokens"] or {}
    return {
        "peak_memory_bytes": plan["memory"]["measurable_bytes"],
        "seconds": spent.get("steps"),
        "total_seconds": spent.get("total"),
        "computed_tokens": tokens.get("run_computed"),
        "real_tokens": tokens.get("run_real"),
        "steps": tokens.get("steps"),
    }


def compared(plan: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the history, from what was planned and `result` of run.json."""
    planned, actual = figures(plan), {figure: result[figure] for figure in FIGURES}
    if actual["peak_memory_bytes"] <= plan["peak_before"]:
        actual["peak_memory_bytes"] = None  # what this process did before the run took more
    return {
        **{name: plan[name] for name in ("time", "device", "dtype")},
        "planned": {figure: planned[figure] for figure in FIGURES},
        "unplanned": (plan["seconds"] or {}).get("unplanned", 0.0),
        "actual": actual,
    }


def history_file() -> Path:
    return cache_dir() / "calibration.jsonl"


def remember(entry: Entry) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a line of history
        history_file().parent.mkdir(parents=True, exist_ok=True)
        with history_file().open("a", encoding="utf-8") as file:
            file.write(json.dumps(console.finite(entry), ensure_ascii=False) + "\n")


def history() -> list[Entry]:
    """The runs of this user that had a plan, oldest first. A line that cannot be read is left out."""
    found = []
    with contextlib.suppress(OSError):
        for line in history_file().read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and {"run", "planned", "actual"} <= entry.keys():
                    found.append(entry)
    return found


def unplanned(device: str, cpu: str) -> tuple[float, int]:
    """Seconds that the latest runs here took beyond their plans besides the steps, in the middle; and of how many runs.

    Of plans as they were before they were corrected by this.
    """
    alike = [entry for entry in history() if entry.get("device") == device and entry.get("cpu") == cpu]
    beyond = [over for entry in alike if (over := _beyond(entry)) is not None][-LATEST:]
    return (max(0.0, statistics.median(beyond)), len(beyond)) if beyond else (0.0, 0)


def _beyond(entry: Entry) -> float | None:
    actual, planned = _rest(entry["actual"]), _rest(entry["planned"])
    return None if actual is None or planned is None else actual - planned + float(entry.get("unplanned", 0))


def _rest(figures: Mapping[str, float | None]) -> float | None:
    """Seconds of all but the steps, None where not both are known."""
    total, steps = figures.get("total_seconds"), figures.get("seconds")
    return None if total is None or steps is None else total - steps


def error(entry: Entry, figure: str) -> float | None:
    """How far the plan was off: 0.1 where it said a tenth too much. None where one of both is not known."""
    planned, actual = entry["planned"].get(figure), entry["actual"].get(figure)
    return planned / actual - 1 if planned and actual else None


def summary(entries: Sequence[Entry]) -> dict[str, Any]:
    """For each figure: runs compared, and the middle and largest of their errors, without sign."""
    found = {}
    for figure in FIGURES:
        errors = [abs(off) for entry in entries if (off := error(entry, figure)) is not None]
        found[figure] = {
            "runs": len(errors),
            "median": statistics.median(errors) if errors else None,
            "largest": max(errors, default=None),
        }
    return found


def show() -> None:
    """The history and its summary, on the screen and as the JSON object."""
    entries = history()
    said = summary(entries)
    console.result({"ok": True, "runs": entries, "summary": said})
    if not entries:
        console.say("No run was planned and finished yet: luthier train RECIPE")
        return
    rows = [
        (
            entry["run"],
            f"{entry.get('model', '')}, {entry.get('dtype', '')} on {entry.get('device', '')}",
            _pair(entry, "peak_memory_bytes", words.size),
            _pair(entry, "seconds", words.duration),
            _pair(entry, "total_seconds", words.duration),
        )
        for entry in entries
    ]
    console.table(("run", "model", "memory: planned, actual", "time of steps", "time in all"), rows)
    for figure, name in zip(FIGURES, ("memory", "time of the steps", "time in all"), strict=True):
        if said[figure]["runs"]:
            middle, largest = (f"{100 * said[figure][each]:.0f} %" for each in ("median", "largest"))
            console.say(f"{name}: off by {middle} in the middle, {largest} at most ({said[figure]['runs']} runs)")


def _pair(entry: Entry, figure: str, text: Any) -> str:
    off = error(entry, figure)
    if off is None:
        return "–"
    percent = f"{100 * off:+.0f} %".replace("-", "−")
    return f"{text(entry['planned'][figure])}, {text(entry['actual'][figure])}: {percent}"
