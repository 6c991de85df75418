"""A standing as people see it: a view of some lines on a terminal, and one plain line an event elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.report import words
from luthier.training.standing import Standing

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
SHORTEST, LONGEST = 8, 60  # cells of a sparkline; with less room there is none
ANSWER_LINES = 3
GAP = 2


def line(event: Mapping[str, Any], stands: Standing, now: float) -> str:
    """An event in one line, empty where it says nothing new to people; `stands` has taken it already."""
    step = event.get("step", 0)
    match event["event"]:
        case "start":
            return f"going on from step {step} of {stands.total_steps}" if event.get("resumed") else ""
        case "step":
            loss = f"loss {three_digits(event.get('loss'))}"
            memory = [] if stands.memory_bytes is None else [words.size(stands.memory_bytes)]
            speed = [*rate(stands), *memory, *eta(stands, now)]
            return "  ".join([f"step {step}/{stands.total_steps}", loss, *speed])
        case "evaluation":
            return f"held-out loss {words.loss(event.get('heldout_loss'))} at step {step}"
        case "sample":
            asked = f"asked: {one_line(stands.prompt)}\n" if len(stands.samples) == 1 else ""
            return f"{asked}answer at step {step}: {one_line(event.get('answer', ''))}"
        case "save":
            return f"saved {event.get('path')}"
        case "stop":
            return f"stopped at step {step}: {event.get('reason')}"
        case "fail":
            return f"failed at step {step}: {event.get('reason')}"
    return ""


def three_digits(loss: float | None) -> str:
    return "not finite" if loss is None or not math.isfinite(loss) else f"{loss:.3f}"


def rate(stands: Standing) -> list[str]:
    """Tokens a second, and what share of the machine's matrix products they come to."""
    if stands.tokens_per_second is None:
        return []
    share = "" if stands.mfu is None else f" ({words.percent(stands.mfu)} of the matrix rate)"
    return [f"{stands.tokens_per_second:,.0f} tokens/s{share}"]


def eta(stands: Standing, now: float) -> list[str]:
    return [] if stands.ends_at is None else [f"ETA {words.duration(max(stands.ends_at - now, 0))}"]


def one_line(text: str) -> str:
    return " ".join(console.harmless(text).split())


def sparkline(values: Iterable[float | None], room: int, bars: str = BARS) -> str:
    """At most `room` bars from the lowest to the highest value, each the mean of as many neighbours.

    >>> sparkline([3, 2, 1.5, 1], 4)
    '█▅▃▁'
    """
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if room < SHORTEST or not finite:
        return ""
    count = min(len(finite), room, LONGEST)
    edges = [round(index * len(finite) / count) for index in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(bars[round((mean - low) / span * (len(bars) - 1))] for mean in means)


@dataclass(frozen=True)
class View:
    """A rich renderable of a standing as it is `now`, in the width there is."""

    stands: Standing
    name: str
    model: str
    now: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        title = Text(one_line(self.name), style="bold", no_wrap=True, overflow="ellipsis")
        yield title.append(f"  {one_line(self.model)}", style="not bold dim")
        yield self._bar()
        if self.stands.total_steps:
            yield self._facts(options.max_width, ASCII_BARS if options.ascii_only else BARS)

    def _bar(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        stands = self.stands
        bar = Table.grid(expand=True, padding=(0, GAP, 0, 0))
        bar.add_column(ratio=1)
        for _ in range(3):
            bar.add_column(no_wrap=True)
        if not stands.total_steps:
            bar.add_row("before the first step …")
            return bar
        share = f"{math.floor(100 * stands.step / stands.total_steps)} %"
        progress = ProgressBar(total=stands.total_steps, completed=stands.step)
        bar.add_row(progress, f"{stands.step}/{stands.total_steps}", share, *self._end())
        return bar

    def _end(self) -> list[str]:
        said = {"stop": "stopped", "fail": "failed", "finish": "trained"}.get(self.stands.ended)
        return [said] if said else eta(self.stands, self.now)

    def _facts(self, width: int, bars: str) -> Table:
        from rich.table import Table

        rows = self._rows()
        grid = Table.grid(padding=(0, GAP, 0, 0))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(overflow="fold")
        room = width - GAP - max(len(label) for label, *_ in rows)
        for label, value, series, color in rows:
            grid.add_row(label, _with_curve(value, series, room, color, bars))
        for label, answer in self._answers():
            grid.add_row(label, _cut(answer, room))
        return grid

    def _rows(self) -> list[tuple[str, str, Sequence[float | None], str]]:
        """Label, value, and the series whose sparkline stands behind it in a colour."""
        stands = self.stands
        losses, heldout = list(stands.losses.values()), list(stands.heldout.values())
        rows: list[tuple[str, str, Sequence[float | None], str]] = [
            ("loss", three_digits(losses[-1]) if losses else "–", losses, "cyan")
        ]
        if heldout:
            both = dict.fromkeys(map(words.loss, (heldout[0], heldout[-1])))
            rows.append(("held-out loss", " → ".join(both), heldout, "green"))
        rows += [("speed", value, (), "") for value in rate(stands)]
        if stands.memory_bytes is not None:
            planned = "" if stands.planned_bytes is None else f" of {words.size(stands.planned_bytes)} planned"
            rows.append(("memory", words.size(stands.memory_bytes) + planned, (), ""))
        if stands.saved is not None:
            step, when = stands.saved
            ago = "" if stands.ended else f", {words.duration(max(self.now - when, 0))} ago"
            rows.append(("checkpoint", f"step {step}{ago}", (), ""))
        return rows

    def _answers(self) -> list[tuple[str, str]]:
        """The question, its first answer and its newest."""
        samples = self.stands.samples
        if not samples:
            return []
        shown = dict.fromkeys((min(samples), max(samples)))
        return [("question", self.stands.prompt), *((f"at step {step}", samples[step]) for step in shown)]


def _with_curve(value: str, series: Sequence[float | None], room: int, color: str, bars: str) -> Text:
    from rich.text import Text

    curve = sparkline(series, room - GAP - len(value), bars) if len(series) > 1 else ""
    return Text(value).append(f"{' ' * GAP}{curve}", style=color) if curve else Text(value)


def _cut(answer: str, room: int) -> Text:
    """As many lines as an answer may take, counted in cells: a Chinese character takes two."""
    from rich.text import Text

    text = Text(one_line(answer) or "(nothing)", style="" if answer.strip() else "dim")
    text.truncate(max(room, 1) * ANSWER_LINES, overflow="ellipsis")
    return text
