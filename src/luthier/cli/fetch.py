"""`luthier fetch`: a model or a data set onto this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier import console


def fetch(
    ref: Annotated[str, typer.Argument(help="Qwen/Qwen3-0.6B, ms:…, hf:…, bundled:…; with --data also https://…")],
    data: Annotated[bool, typer.Option("--data", help="It is a data set: ms:…, hf:… or https://…")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model.")] = None,
    code: Annotated[bool, typer.Option("--code", help="With the model's own Python files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Fetch a model or a data set into the cache. Says where it is."""
    if json:
        console.use_json()
    if data:
        _fetch_data(ref)
    else:
        _fetch_model(ref, revision, code)


def _fetch_model(ref: str, revision: str | None, code: bool) -> None:
    from luthier.hub.fetch import fetch_model

    model = fetch_model(ref, revision=revision, allow_code=code)
    console.say(str(model.path))
    console.result({"ok": True, "ref": ref, "path": str(model.path), "hub": model.hub, "revision": model.revision})


def _fetch_data(ref: str) -> None:
    from luthier.hub.fetch import fetch_data

    paths = [str(path) for path in fetch_data(ref)]
    console.say("\n".join(paths))
    console.result({"ok": True, "ref": ref, "paths": paths})
