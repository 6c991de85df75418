"""luthier runs: the runs, and how each went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier import console
from luthier.errors import RunError
from luthier.report import words
from luthier.report.record import RunFolder, list_runs, timeline


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """List the runs: model, rows, held-out loss, time, state."""
    if json:
        console.use_json()
    found = [_facts(run) for run in list_runs(folder)]
    console.result({"ok": True, "folder": str(folder), "runs": found})
    if not found:
        console.say(f"No runs in {folder}. Train one: luthier train recipe.yaml, or luthier demo")
        return
    console.table(("run", "model", "rows", "held-out loss", "time", "state"), [_row(facts) for facts in found])


RESULT = ("rows", "heldout_loss_before", "heldout_loss_after", "seconds")


def _facts(run: RunFolder) -> dict[str, Any]:
    """What the run's files say; None for what they do not. One that cannot be read is listed with the problem."""
    facts: dict[str, Any] = {"run": run.name, "path": str(run.path), "model": None, **dict.fromkeys(RESULT)}
    try:
        facts["model"] = run.read_recipe().model.ref
        record = run.record()
        result = record["result"] if record else _so_far(timeline(run.events()))
        return {**facts, **{key: result.get(key) for key in RESULT}, "state": run.state()}
    except RunError as error:
        return {**facts, "state": f"unreadable: {error.problems[0].what}"}


def _so_far(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of a run that has not finished: its first held-out loss and, once there is another, its latest."""
    losses = [event["heldout_loss"] for event in events if event["event"] == "evaluation"]
    return {"heldout_loss_before": next(iter(losses), None), "heldout_loss_after": next(iter(losses[:0:-1]), None)}


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    losses = (facts["heldout_loss_before"], facts["heldout_loss_after"])
    return (
        facts["run"],
        facts["model"] or "",
        "" if facts["rows"] is None else f"{facts['rows']:,}",
        "" if losses == (None, None) else " → ".join(map(words.loss, losses)),
        "" if facts["seconds"] is None else words.duration(facts["seconds"]),
        facts["state"],
    )
