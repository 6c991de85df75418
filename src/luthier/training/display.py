"""What a person sees while a model trains: a live view on a terminal, plain lines elsewhere.

Fed with the events of events.jsonl, one by one: by the process that trains, or by one that watches it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.training.standing import Standing
from luthier.training.view import View, line

if TYPE_CHECKING:
    from rich.live import Live

SHOWN_ABOVE = ("start", "stop", "fail")  # as lines that stay, above the live view
REFRESHES = 4  # a second, by a thread of its own: an event only changes what it will draw


class Display:
    """`with Display("huanhuan", "Qwen/Qwen3-0.6B") as display: display.event({"event": "step", …})`

    Args:
        name, model: of the run.
        past: events of earlier sessions.
    """

    def __init__(self, name: str, model: str, past: Iterable[Mapping[str, Any]] = ()) -> None:
        self.name, self.model = name, model
        self.standing = Standing()
        for event in past:
            self.standing.take(event, event.get("time", 0.0))
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if console.is_terminal():
            from rich.live import Live

            from luthier.training.redraw import Redrawn

            screen = console.people()
            view = Redrawn(self._view, screen)
            screen.push_render_hook(view)
            self._live = Live(view, console=screen, refresh_per_second=REFRESHES, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def event(self, event: Mapping[str, Any]) -> None:
        """Show one event, which says all that its line in events.jsonl says; "time" may be missing."""
        now = event.get("time", time.time())
        self.standing.take(event, now)
        said = line(event, self.standing, now)
        if said and (self._live is None or event["event"] in SHOWN_ABOVE):
            console.say(said)

    def close(self) -> None:
        """Leave the last view on the screen. More than once does no harm."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _view(self) -> View:
        return View(self.standing, self.name, self.model, time.time())
