"""What a person sees while a model trains: a live view on a terminal, plain lines elsewhere.

Fed with the events of events.jsonl, one by one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.report import words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live


@dataclass
class Standing:
    """Where the training stands after the last event. Times are seconds since the epoch."""

    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    heldout_loss: float | None = None
    heldout_loss_before: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: float | None = None
    first: tuple[int, float] | None = (
        None  # the first step seen and its time: what came before it says nothing of speed
    )
    ends_at: float | None = None

    def take(self, event: Mapping[str, Any], now: float) -> None:
        self.step = event.get("step", self.step)
        self.total_steps = event.get("total_steps", self.total_steps)
        if event["event"] == "step":
            self.loss = event["loss"]
            self.tokens_per_second = event.get("tokens_per_second")
            self.memory_bytes = event.get("memory_bytes")
            self._estimate(now)
        elif event["event"] == "evaluation":
            self.heldout_loss = event["heldout_loss"]
            if self.heldout_loss_before is None:
                self.heldout_loss_before = self.heldout_loss

    def _estimate(self, now: float) -> None:
        first_step, first_time = self.first = self.first or (self.step, now)
        if self.step > first_step:
            self.ends_at = now + (now - first_time) / (self.step - first_step) * (self.total_steps - self.step)

    def eta(self, now: float) -> list[str]:
        return [] if self.ends_at is None else [f"ETA {words.duration(max(self.ends_at - now, 0))}"]

    def speed(self) -> list[str]:
        rate = [] if self.tokens_per_second is None else [f"{self.tokens_per_second:,.0f} tokens/s"]
        return rate if self.memory_bytes is None else [*rate, words.size(self.memory_bytes)]


class Display:
    """`with Display() as display: display.event({"event": "step", …})`"""

    def __init__(self) -> None:
        self._standing = Standing()
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if console.is_terminal():
            from rich.live import Live

            self._live = Live(get_renderable=self._view, console=console.people(), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def event(self, event: Mapping[str, Any]) -> None:
        """Show one event, which says all that its line in events.jsonl says; "time" may be missing."""
        now = event.get("time", time.time())
        self._standing.take(event, now)
        line = self._line(event, now)
        if line and (self._live is None or event["event"] not in ("step", "evaluation", "save")):
            console.say(line)

    def close(self) -> None:
        """Leave the last view on the screen. More than once does no harm."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, event: Mapping[str, Any], now: float) -> str:
        stands, step = self._standing, event.get("step", 0)
        match event["event"]:
            case "start":
                return f"going on from step {step} of {stands.total_steps}" if event["resumed"] else ""
            case "step":
                loss = f"loss {_three(stands.loss)}"
                return "  ".join([f"step {step}/{stands.total_steps}", loss, *stands.speed(), *stands.eta(now)])
            case "evaluation":
                return f"held-out loss {words.loss(stands.heldout_loss)} at step {step}"
            case "save":
                return f"saved {event['path']}"
            case "stop":
                return f"stopped at step {step}: {event['reason']}"
            case "fail":
                return f"failed at step {step}: {event['reason']}"
        return ""

    def _view(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        stands = self._standing
        top = Table.grid(expand=True, padding=(0, 2, 0, 0))
        top.add_column(ratio=1)
        bar = ProgressBar(total=max(stands.total_steps, 1), completed=stands.step)
        top.add_row(bar, f"{stands.step}/{stands.total_steps}", *stands.eta(time.time()))
        facts = [f"loss {_three(stands.loss)}", *self._heldout(), *stands.speed()]
        return Group(top, Text("   ".join(facts)))

    def _heldout(self) -> list[str]:
        """The first held-out loss and, once there is another, the latest."""
        if self._standing.heldout_loss is None:
            return []
        both = [words.loss(self._standing.heldout_loss_before), words.loss(self._standing.heldout_loss)]
        return [f"held-out loss {' → '.join(dict.fromkeys(both))}"]


def _three(loss: float | None) -> str:
    return "not finite" if loss is None or not math.isfinite(loss) else f"{loss:.3f}"
