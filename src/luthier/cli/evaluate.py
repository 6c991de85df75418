"""`luthier eval`: did it help?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier import console


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Measure base and tuned model on held-out rows. Loss, perplexity, and both answers to the same prompts."""
    if json:
        console.use_json()
    from luthier.cli.summary import show_answers
    from luthier.evaluation.evaluate import evaluate as evaluate_run
    from luthier.report.record import RunFolder

    folder = RunFolder.open(run)
    found = evaluate_run(folder)
    show_answers(found["answers"])
    rows = [(name, f"{found[name]['loss']:.4f}", f"{found[name]['perplexity']:.2f}") for name in ("base", "tuned")]
    console.table(("model", "held-out loss", "perplexity"), rows, title=f"{found['rows']:,} held-out rows")
    console.say(f"kept in  {folder.evaluation_file}")
    console.result({"ok": True, "run": str(run), **found})
