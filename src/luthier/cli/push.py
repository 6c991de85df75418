"""`luthier push`: an export to ModelScope or Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier import console


def push(
    folder: Annotated[Path, typer.Argument(help="The folder of an export.")],
    to: Annotated[str, typer.Option(help="ms:owner/name or hf:owner/name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload. Without it: show what would be.")] = False,
    public: Annotated[bool, typer.Option("--public", help="A repository made by this is public.")] = False,
    unverified: Annotated[bool, typer.Option("--unverified", help="Also an export that was never run.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Push an export to a model hub. Shows every file; uploads with --yes."""
    if json:
        console.use_json()
    from luthier.export import push as pushes
    from luthier.report import words

    upload = pushes.plan(folder, to, unverified=unverified)
    rows = [(file, f"{size:,}") for file, size in upload.files.items()]
    total = sum(upload.files.values())
    where = f"{upload.hub.title} ({upload.hub.endpoint}), {upload.repo}"
    console.table(("file", "bytes"), rows, title=f"{where}: {len(rows)} files, {words.size(total)}")
    console.say(f"{upload.record.state}; if the repository is new, it becomes {'public' if public else 'private'}")
    facts = {"ok": True, "to": to, "endpoint": upload.hub.endpoint, "files": upload.files, "public": public}
    if not yes:
        console.say("The card, README.md, quotes rows of the training. Read it, then upload with --yes.")
        console.result({**facts, "uploaded": False})
        return
    page = pushes.push(folder, upload, public=public)
    console.say(f"uploaded  {page}")
    console.result({**facts, "uploaded": True, "page": page})
