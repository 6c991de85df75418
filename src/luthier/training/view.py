"""A standing as people see it: a view of some lines on a terminal, and one plain line an event elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
NARROWEST = 20  # cells of a value beside a column of labels


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
        if not self.stands.total_steps:
            yield Text("before the first step …")
            return
        yield self._bar(options.max_width)
        yield from self._facts(console, options.max_width, ASCII_BARS if options.ascii_only else BARS)

    def _bar(self, width: int) -> Table | Text:
        """One line. Where that is short the bar goes first, then the count of steps, then the share."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        step, total = self.stands.step, self.stands.total_steps
        parts = [f"{step}/{total}", f"{math.floor(100 * step / total)} %", *self._end()]
        said = [(" " * GAP).join(parts[first:]) for first in range(len(parts))]
        if width - GAP - len(said[0]) < SHORTEST:
            return Text(_fitting(said, width))
        bar = Table.grid(expand=True, padding=(0, GAP, 0, 0))
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(ProgressBar(total=total, completed=step), said[0])
        return bar

    def _end(self) -> list[str]:
        said = {"stop": "stopped", "fail": "failed", "finish": "trained"}.get(self.stands.ended)
        return [said] if said else eta(self.stands, self.now)

    def _facts(self, console: Console, width: int, bars: str) -> Iterator[Text]:
        """A line each; answers take more. Labels stand in a column of their own where there is room for one."""
        from rich.text import Text

        rows, answers = self._rows(), self._answers()
        column = GAP + max(len(label) for label, *_ in [*rows, *answers])
        column = column if width - column >= NARROWEST else 0
        for label, values, series, color in rows:
            start = f"{label} ".ljust(column)
            value = _fitting(values, width - len(start))
            curve = sparkline(series, width - len(start) - len(value) - GAP, bars) if len(series) > 1 else ""
            yield Text.assemble((start, "dim"), value, (f"{' ' * GAP}{curve}" if curve else "", color))
        for label, answer in answers:
            start = f"{label} ".ljust(column)
            text = Text(one_line(answer) or "(nothing)", style="" if answer.strip() else "dim")
            if not column:
                start, text = "", Text.assemble((start, "dim"), text)
            for line in _cut(list(text.wrap(console, width - column)), width - column):
                yield Text.assemble((start, "dim"), line)
                start = " " * column

    def _rows(self) -> list[tuple[str, list[str], Sequence[float | None], str]]:
        """Label, value (also in less and less words), and the series whose sparkline stands behind it in a colour."""
        stands = self.stands
        losses, heldout = list(stands.losses.values()), list(stands.heldout.values())
        rows: list[tuple[str, list[str], Sequence[float | None], str]] = [
            ("loss", [three_digits(losses[-1]) if losses else "–"], losses, "cyan")
        ]
        if heldout:
            both = list(dict.fromkeys(map(words.loss, (heldout[0], heldout[-1]))))
            rows.append(("held-out loss", [" → ".join(both), both[-1]], heldout, "green"))
        for full in rate(stands):
            rows.append(("speed", [full, full.replace(" of the matrix rate", ""), full.partition(" (")[0]], (), ""))
        if stands.memory_bytes is not None:
            held = words.size(stands.memory_bytes)
            both = [] if stands.planned_bytes is None else [f"{held} of {words.size(stands.planned_bytes)}"]
            rows.append(("memory", [*(f"{said} planned" for said in both), *both, held], (), ""))
        if stands.saved is not None:
            step, when = stands.saved
            ago = [] if stands.ended else [f"step {step}, {words.duration(max(self.now - when, 0))} ago"]
            rows.append(("checkpoint", [*ago, f"step {step}"], (), ""))
        return rows

    def _answers(self) -> list[tuple[str, str]]:
        """The question, its first answer and its newest."""
        samples = self.stands.samples
        if not samples:
            return []
        shown = dict.fromkeys((min(samples), max(samples)))
        return [("question", self.stands.prompt), *((f"at step {step}", samples[step]) for step in shown)]


def _fitting(values: Sequence[str], room: int) -> str:
    """The first that fits into so many cells, else the last: no number is cut."""
    return next((value for value in values if len(value) <= room), values[-1])


def _cut(lines: list[Text], room: int) -> list[Text]:
    """As many lines as an answer may take."""
    if len(lines) > ANSWER_LINES:
        lines = lines[:ANSWER_LINES]
        lines[-1].truncate(room - 1)
        lines[-1].append("…")
    return lines
