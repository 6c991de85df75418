"""The only module that prints.

People's text goes to standard output and problems to standard error. After `use_json()` standard output
carries one JSON object, written by `result()`, and everything meant for people goes to standard error.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, cast

from luthier.secrets import Masked, masked

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from luthier.errors import LuthierError

_json = _lines_only = False
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line end: an answer may hold escapes


def use_json() -> None:
    """From here on standard output holds nothing but the object given to `result()`."""
    global _json
    _json = True


def use_plain() -> None:
    """From here on lines alone, as where nobody is looking: nothing that is drawn anew in its place."""
    global _lines_only
    _lines_only = True


def set_up_streams() -> None:
    """UTF-8 whatever the code page, so that a Chinese answer prints on any Windows terminal; and no token."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text are signs of that, not a traceback
    sys.stderr = cast(IO[str], Masked(sys.stderr))  # for what libraries log, and for tracebacks


def people() -> Console:
    """The rich console for people's text. Made at each call: tests and notebooks swap the streams."""
    from rich.console import Console

    stream: IO[str] = sys.stderr if _json else sys.stdout
    return Console(file=stream, highlight=False, emoji=False, soft_wrap=not stream.isatty())


def _problems() -> Console:
    """The rich console for what went wrong. Lines are not broken: they are copied and searched for."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, emoji=False, soft_wrap=True)


def is_terminal() -> bool:
    """Whether a person is looking at live output (else plain lines are printed)."""
    moves = not _lines_only and os.environ.get("TERM") not in ("dumb", "unknown")  # rich would draw nothing there
    return moves and (sys.stderr if _json else sys.stdout).isatty()


def harmless(text: str) -> str:
    """Text of anybody's, fit to be shown: without tokens, and without what would steer the terminal."""
    return _CONTROL.sub("", masked(text))


def say(text: str = "", *, style: str | None = None) -> None:
    """One line for people. `text` is taken literally: no markup."""
    people().print(harmless(text), style=style, markup=False)


def show(renderable: RenderableType) -> None:
    """A rich table, panel or styled text."""
    people().print(renderable)


def command(arguments: str) -> str:
    """A command as the user can type it: `luthier chat …`, or `python start.py chat …` where that started this one."""
    return f"{os.environ.get('LUTHIER_COMMAND', 'luthier')} {arguments}"


def write(text: str) -> None:
    """A piece of text with no line end, at once: the tokens of a streamed answer, which cannot steer the terminal."""
    stream = sys.stderr if _json else sys.stdout
    stream.write(harmless(text))
    stream.flush()


def ask(prompt: str) -> str | None:
    """A line typed by the user, or None at the end of input (Ctrl-D) or Ctrl-C."""
    write(prompt)
    try:
        return input()
    except (EOFError, KeyboardInterrupt):
        write("\n")
        return None


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None, lines: bool = False
) -> None:
    """A table with literal cells. Long cells wrap; `lines` puts one between rows."""
    from rich.markup import escape
    from rich.table import Table

    grid = Table(title=title, title_justify="left", show_lines=lines)
    for column in columns:
        grid.add_column(escape(column), overflow="fold")
    for row in rows:
        grid.add_row(*(escape(harmless(str(cell))) for cell in row))
    show(grid)


def warn(text: str) -> None:
    """Something the user should know that does not stop the work. Goes to standard error."""
    _problems().print(harmless(f"note: {text}"), style="yellow", markup=False)


def fail(error: LuthierError) -> None:
    """All problems of an error: on standard error for people, as the JSON object with `--json`."""
    if _json:
        result({"ok": False, "error": type(error).__name__, "problems": [vars(p) for p in error.problems]})
        return
    console = _problems()
    for problem in error.problems:
        console.print(harmless(f"✗ {problem.where}: {problem.what}"), style="bold red", markup=False)
        console.print(harmless(f"  → {problem.fix}"), markup=False)


def result(value: Any) -> None:
    """The one JSON object of a `--json` command. Does nothing without `--json`."""
    if _json:
        sys.stdout.write(masked(json.dumps(finite(value), ensure_ascii=False, indent=2, allow_nan=False)) + "\n")
        sys.stdout.flush()


def log_line(record: Mapping[str, Any]) -> None:
    """One JSON object in one line on standard error: what a server did."""
    line = json.dumps(finite(record), ensure_ascii=False, allow_nan=False)
    sys.stderr.write(masked(line.encode(errors="backslashreplace").decode()) + "\n")
    sys.stderr.flush()


def finite(value: Any) -> Any:
    """A JSON value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


class Progress:
    """A count that grows. See `progress()`."""

    def __init__(self, advance: Any) -> None:
        self.advance = advance


@contextlib.contextmanager
def progress(description: str, total: float | None, *, unit: str = "") -> Iterator[Progress]:
    """A bar with an ETA on a terminal; elsewhere one line at the start and one at the end.

    `unit="bytes"` shows sizes and speed. Inside: `bar.advance(n)`.
    """
    from rich import progress as bars

    if not is_terminal():
        say(f"{description} …")
        yield Progress(lambda n=1: None)
        return
    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}", markup=False), bars.BarColumn()]
    columns += [bars.DownloadColumn(), bars.TransferSpeedColumn()] if unit == "bytes" else [bars.MofNCompleteColumn()]
    columns += [bars.TimeRemainingColumn(compact=True)]
    with bars.Progress(*columns, console=people()) as shown:
        task = shown.add_task(harmless(description), total=total)
        yield Progress(lambda n=1: shown.advance(task, n))
