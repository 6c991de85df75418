"""`luthier` that notes the command line of every process it starts: `audited.py FILE train recipe.yaml`."""

from __future__ import annotations

import os
import sys

_, notes, *arguments = sys.argv
COMMAND_LINES = {"subprocess.Popen": 1, "os.exec": 1, "os.posix_spawn": 1, "os.spawn": 2, "os.system": 0}
"""Audit event → which of its arguments is the command line."""

file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(event: str, details: tuple[object, ...]) -> None:
    if event in COMMAND_LINES:
        os.write(file, f"{details[COMMAND_LINES[event]]}\n".encode())


sys.addaudithook(note)

from luthier.cli.main import main  # noqa: E402

sys.argv = ["luthier", *arguments]
main()
