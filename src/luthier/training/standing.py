"""Where a training stands, told from its events alone: in the process that trains, and in any that reads its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]


@dataclass
class Standing:
    """After the events taken so far, as they count: what is done again replaces what was done before.

    `losses`, `heldout` and `samples` are by step. Times are seconds since the epoch.
    """

    step: int = 0
    total_steps: int = 0
    losses: dict[int, float | None] = field(default_factory=dict)
    heldout: dict[int, float | None] = field(default_factory=dict)
    samples: dict[int, str] = field(default_factory=dict)
    prompt: str = ""
    tokens_per_second: float | None = None
    mfu: float | None = None
    memory_bytes: float | None = None
    planned_bytes: float | None = None
    saved: tuple[int, float] | None = None
    """The last checkpoint: its step, and when it was written."""
    ended: str = ""
    """How the last session ended, if it did: stop, fail or finish."""
    ends_at: float | None = None
    _first: tuple[int, float] | None = None  # the session's first step, and when it was done: loading is no speed

    def take(self, event: Event, now: float) -> None:
        """One more event, at its time."""
        kind, self.step = event["event"], event.get("step", self.step)
        if kind == "start":
            self._begin(event)
        elif kind == "plan":
            self.planned_bytes = (event.get("memory") or {}).get("measurable_bytes")
        elif kind == "step":
            self.losses[self.step] = event.get("loss")
            self.tokens_per_second, self.mfu = event.get("tokens_per_second"), event.get("mfu")
            self.memory_bytes = event.get("memory_bytes")
            self._estimate(now)
        elif kind == "evaluation":
            self.heldout[self.step] = event.get("heldout_loss")
        elif kind == "sample":
            self.prompt, self.samples[self.step] = event.get("prompt", ""), event.get("answer", "")
        elif kind == "save":
            self.saved = self.step, now
        elif kind in ("stop", "fail", "finish"):
            self.ended, self.ends_at = kind, None

    def _begin(self, event: Event) -> None:
        last = self.step if event.get("resumed") else -1
        for found in (self.losses, self.heldout, self.samples):
            for step in [step for step in found if step > last]:
                del found[step]
        self.total_steps = event.get("total_steps", self.total_steps)
        self.saved = self.saved if event.get("resumed") else None
        self.ended, self.ends_at, self._first = "", None, None

    def _estimate(self, now: float) -> None:
        first_step, first_time = self._first = self._first or (self.step, now)
        if self.step > first_step:
            self.ends_at = now + (now - first_time) / (self.step - first_step) * (self.total_steps - self.step)

    def to_json(self) -> dict[str, Any]:
        """The newest figures, under the names of the events."""
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "loss": _newest(self.losses),
            "heldout_loss": _newest(self.heldout),
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "memory_bytes": self.memory_bytes,
            "planned_bytes": self.planned_bytes,
            "saved_step": self.saved and self.saved[0],
            "prompt": self.prompt or None,
            "answer": _newest(self.samples),
        }


def _newest(found: dict[int, Any]) -> Any:
    return next(reversed(found.values()), None)
