"""`luthier data`: what a file holds and becomes, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier import console

PAGE_ROWS = 20  # as tokens, on the page


def data(
    ref: Annotated[str, typer.Argument(help="A file, a hub data set (ms:…, hf:…) or an https:// address.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Whose tokens to count and show.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt for rows that have none.")] = None,
    format: Annotated[str, typer.Option(help="auto, alpaca, sharegpt, messages, prompt_completion or text.")] = "auto",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Any setting: data.too_long=error")] = None,
    rows: Annotated[int, typer.Option(help="Rows to show as tokens.", min=0)] = 3,
    html: Annotated[Path | None, typer.Option(help="Write a page as well.")] = None,
    fix: Annotated[Path | None, typer.Option(help="Write the cleaned rows to this file, with a log beside it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Look at data: what is wrong and what to do. With a model also lengths, and the tokens coloured where trained."""
    if json:
        console.use_json()
    from luthier.data import preview
    from luthier.data.look import fix as fixing
    from luthier.data.look.look import look
    from luthier.data.look.show import show
    from luthier.recipe.load import with_overrides

    bad_rows = {"bad_rows": "drop"} if fix else {}
    raw: dict[str, Any] = {
        "model": model or "-",
        "data": {"train": ref, "system": system, "format": format, **bad_rows},
        "output": "-",
    }
    recipe = with_overrides(raw, overrides or [], "luthier data")
    if fix:
        fixing.check_target(fix)
    reader = _reader(recipe) if model else None
    found = look(recipe.data, seed=recipe.train.seed, reader=reader, keep=max(rows, PAGE_ROWS if html else 0))
    if found.unused_columns:
        console.warn(f"columns that are not used: {', '.join(map(preview.printable, found.unused_columns))}")
    show(found)
    tokenizer = reader.renderer.tokenizer if reader else None
    if tokenizer and rows:
        preview.show_rows(found.first, tokenizer, rows=rows)
    if html is not None:
        from luthier.data.look.page import write_page

        write_page(html, found, tokenizer, title=ref)
        console.say(f"Page  {html}")
    fixed = fixing.write_fixed(recipe.data, fix) if fix else None
    if fixed:
        console.say(f"Fixed {fixed.file}: {fixed.kept:,} of {fixed.read:,} rows, every change in {fixed.log}")
    console.result({"ok": True, **found.to_json(), **({"fixed": fixed.to_json()} if fixed else {})})


def _reader(recipe: Any) -> Any:
    from luthier.data.look.look import Reader
    from luthier.data.prepare import pick_max_length
    from luthier.model.load import context_length
    from luthier.training.job import open_model

    base, renderer = open_model(recipe, {})
    context = context_length(base.path)
    return Reader(renderer, pick_max_length(recipe.data, context).value, context)
