"""A run seen from another process: the same view, from what the run folder holds."""

from __future__ import annotations

import time

from luthier import console
from luthier.errors import RunError
from luthier.report.record import RunFolder
from luthier.report.tail import Tail
from luthier.training.display import Display
from luthier.training.standing import Standing

LOOKS = 0.25  # seconds from one look at the folder to the next


def watch(run: RunFolder) -> Standing:
    """Shows a run until it ends, or once if it has; waits for one that has not begun. Returns where it stands then.

    Only reads: the run knows nothing of it.
    """
    _wait(run)
    tail = Tail(run)
    ended = False
    while not ended:
        with Display(run.name, "") as display:
            ended = _follow(run, tail, display)
    if tail.damaged:
        console.warn(f"{run.events_file}: damaged lines were passed over, {tail.damaged} in all")
    return display.standing


def is_at_work(run: RunFolder) -> bool:
    try:
        return run.owner() is not None
    except RunError:  # running.json was changed by hand
        return False


def _wait(run: RunFolder) -> None:
    """Until there is something to see."""
    if is_at_work(run) or run.events_file.exists():
        return
    console.say(f"Waiting for {run.path} to begin (Ctrl-C ends the waiting)")
    while not is_at_work(run) and not run.events_file.exists():
        time.sleep(LOOKS)


def _follow(run: RunFolder, tail: Tail, display: Display) -> bool:
    """Whether the run has ended; False where it was begun anew, so that what was shown is no longer true."""
    while True:
        at_work = is_at_work(run)  # asked before the events are read: none is written after a no
        new = tail.read(to_the_end=not at_work)
        if new is None:
            return False
        display.model = display.model or _model(run)
        for event in new:
            display.event(event)
        if not at_work:
            return True
        time.sleep(LOOKS)


def _model(run: RunFolder) -> str:
    """The model's name, once the run has come so far as to keep its recipe."""
    try:
        return run.read_recipe().model.ref
    except RunError:
        return ""
