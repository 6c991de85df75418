"""luthier report: the page of a run, made anew from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from luthier import console


def report(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    lang: Annotated[
        Literal["en", "zh"] | None, typer.Option(help="Language of the page. Default: what LC_ALL or LANG say.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Write report.html of a run again, finished or not. Says where it is."""
    if json:
        console.use_json()
    from luthier.report.languages import LANGUAGES
    from luthier.report.page import write_report
    from luthier.report.record import RunFolder

    page = write_report(RunFolder.open(run), language=LANGUAGES[lang] if lang else None).resolve()
    console.result({"ok": True, "report": str(page)})
    console.say(f"Open it in a browser: {page.as_uri()}")
