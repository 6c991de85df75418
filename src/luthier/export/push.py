"""`luthier push`: a verified export to a model hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from luthier import console
from luthier.errors import CheckFailed, HubError, InputError, Problem
from luthier.export import record
from luthier.export.card import licence_name
from luthier.hub.hubs import Hub, hub_of
from luthier.hub.refs import HubName
from luthier.report import words

_TARGET = re.compile(r"(ms|hf):([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)", re.ASCII)


@dataclass(frozen=True)
class Upload:
    """What would be sent, and where to. `files`: path with forward slashes → bytes."""

    hub: Hub
    repo: str
    files: dict[str, int]
    record: record.Exported


def plan(folder: Path, to: str, *, unverified: bool = False) -> Upload:
    """What a push would do. Sends nothing.

    Not export.json: it names the run's folder on this machine, and its figures are in the card.

    Raises:
        InputError: no such target, no export, or one that was not verified, without `unverified`.
        CheckFailed: it failed its verification, or a file of it has changed since.
    """
    match = _TARGET.fullmatch(to)
    if not match:
        fix = "name hub, owner and repository: --to ms:owner/name or --to hf:owner/name"
        raise InputError(Problem(f"--to {to}", "names no repository of a hub", fix))
    made = record.read(folder)
    if made.state == "failed":
        broken = ", ".join(check.name for check in made.checks if not check.holds)
        what = f"does not answer as the trained model does ({broken})"
        raise CheckFailed(Problem(str(folder), what, "export the run again: in another form, or after training anew"))
    if made.state == "unverified" and not unverified:
        verify = console.command(f"export --verify {words.typed(folder)}")
        what = "was never run by the program that it is for"
        raise InputError(Problem(str(folder), what, f"{verify}; or push it as it is with --unverified"))
    name: HubName = "ms" if match[1] == "ms" else "hf"
    files = {file: (folder / file).stat().st_size for file in made.files}
    return Upload(hub_of(name), match[2], files, made)


def push(folder: Path, upload: Upload, *, public: bool) -> str:
    """Sends the files; returns the repository's page. Raises HubError."""
    hub = upload.hub
    if not hub.signed_in:
        fix = f"set {hub.token_variable} to an access token that may write, or log in with the hub's own command"
        raise HubError(Problem(f"{hub.name}:{upload.repo}", f"{hub.title} takes no files from anonymous users", fix))
    console.say(f"Uploading to {hub.title} …")
    return hub.upload(upload.repo, folder, list(upload.files), public=public, licence=licence_name(folder))
