"""`luthier data`: what a file becomes, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier import console


def data(
    ref: Annotated[str, typer.Argument(help="A file, a hub data set (ms:…, hf:…) or an https:// address.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Whose tokenizer and template to use.")],
    system: Annotated[str | None, typer.Option(help="System prompt for rows that have none.")] = None,
    format: Annotated[str, typer.Option(help="auto, alpaca, sharegpt, messages, prompt_completion or text.")] = "auto",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Any setting: data.too_long=error")] = None,
    rows: Annotated[int, typer.Option(help="Rows to show as tokens.", min=0)] = 3,
    html: Annotated[Path | None, typer.Option(help="Write a page as well.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Look at data: its format, the ledger of all rows, lengths. And rows as tokens, coloured where trained."""
    if json:
        console.use_json()
    from luthier.data import preview
    from luthier.data.prepare import pick_max_length, prepare
    from luthier.model.load import context_length
    from luthier.recipe.load import with_overrides
    from luthier.training.job import describe, open_model, show_data

    raw: dict[str, Any] = {"model": model, "data": {"train": ref, "system": system, "format": format}, "output": "-"}
    recipe = with_overrides(raw, overrides or [], "luthier data")
    base, renderer = open_model(recipe, {})
    longest = pick_max_length(recipe.data, context_length(base.path)).value
    prepared = prepare(recipe.data, renderer, max_length=longest, seed=recipe.train.seed)
    show_data(prepared)
    lengths = preview.measure(prepared.train)
    preview.show_lengths(lengths)
    if rows:
        preview.show_rows(prepared.train, renderer.tokenizer, rows=rows)
    if html is not None:
        preview.write_html(
            html,
            prepared.train,
            renderer.tokenizer,
            title=ref,
            facts=[*((file["path"], describe(file)) for file in prepared.files), ("model", model)],
            lengths=lengths,
            ledger=prepared.ledger.to_json(),
        )
        console.say(f"page     {html}")
    console.result(
        {"ok": True, "files": prepared.files, "ledger": prepared.ledger.to_json(), "lengths": lengths.to_json()}
    )
