"""`luthier watch`: a run seen from another terminal, or over ssh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier import console

STATUS = {"finished": 0, "failed": 1}  # else 3: it can go on


def watch(
    run: Annotated[Path, typer.Argument(help="The run's folder, also before the run begins.")],
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines on a terminal too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Watch a run until it ends. Ctrl-C ends only the watching."""
    if json:
        console.use_json()
    if plain:
        console.use_plain()
    from luthier.report.record import RunFolder
    from luthier.training.watch import is_at_work
    from luthier.training.watch import watch as watch_run

    folder = RunFolder(run)
    try:
        stands = watch_run(folder)
    except KeyboardInterrupt:
        console.say("Watches no more; the run goes on." if is_at_work(folder) else "Waits no more.")
        return
    found = folder.state()
    console.result({"ok": found == "finished", "run": str(folder.path), "state": found, **stands.to_json()})
    console.say(f"{folder.path}: {found}")
    raise typer.Exit(STATUS.get(found.partition(" ")[0], 3))
