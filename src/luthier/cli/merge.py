"""`luthier merge`: base and adapter as one ordinary model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier import console


def merge(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the merged model.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Without it: as the base is published.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Merge the adapter into the weights. Checks that the merged model answers as the adapter did."""
    if json:
        console.use_json()
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"{dtype!r} is not float32, bfloat16 or float16", param_hint="--dtype")
    from luthier.export.merge import merge as merge_run
    from luthier.report.record import RunFolder

    merged = merge_run(RunFolder.open(run), output, dtype=dtype)
    console.say(f"saved in {merged.dtype.value}: {merged.dtype.reason}")
    console.say(
        f"Largest difference of a logit, merged against adapter, on {merged.prompts} prompts: {merged.difference:.2g} "
        f"({merged.dtype.value} allows {merged.bound:g}); the same best token at {merged.agreement:.2%} of positions"
    )
    console.say(f"merged   {merged.path}")
    console.say(f"chat     {console.command(f'chat {merged.path}')}")
    facts = {"dtype": merged.dtype.value, "why": merged.dtype.reason, "bound": merged.bound}
    console.result({"ok": True, **vars(merged), **facts, "path": str(merged.path)})
