"""luthier report: the page of a run, made anew from its files; of several runs, the page that compares them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from luthier import console
from luthier.errors import Problem, RunError, all_of


def report(
    run: Annotated[list[Path], typer.Argument(help="The run's folder; several runs are compared.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page. Default: report.html in the run, or comparison.html beside it."),
    ] = None,
    lang: Annotated[
        Literal["en", "zh"] | None, typer.Option(help="Language of the page. Default: what LC_ALL or LANG say.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Write report.html of a run again, finished or not, or compare several runs on one page. Says where it is."""
    if json:
        console.use_json()
    from luthier.report.compare import write_comparison
    from luthier.report.languages import LANGUAGES
    from luthier.report.page import write_report
    from luthier.report.record import RunFolder

    folders = {folder.resolve(): folder for folder in run}.values()  # each once
    runs = all_of(*(partial(RunFolder.open, folder) for folder in folders))
    language = LANGUAGES[lang] if lang else None
    try:
        written = write_comparison(runs, output, language) if len(runs) > 1 else write_report(runs[0], output, language)
    except OSError as error:
        what = f"the page cannot be written: {error.strerror or error}"
        raise RunError(Problem(str(output or run[0]), what, "name another place: -o FILE")) from None
    page = written.resolve()
    console.result({"ok": True, "report": str(page)})
    console.say(f"Open it in a browser: {page.as_uri()}")
