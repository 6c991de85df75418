"""An environment of its own for each peer, so that neither its versions nor Luthier's bend to the other's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.contenders import Contender
from luthier.errors import InputError, Problem
from luthier.hardware.environment import installed_torch


def environment(name: str, contender: Contender, folder: Path, device: str) -> Path:
    """The Python of a peer's environment in `folder`, installed by pip's own settings where it is not there yet.

    Raises InputError with pip's last words.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "installed.json"  # written last: its presence means that the install is complete
    wanted = [*contender.requirements, *(contender.gpu_requirements if device == "cuda" else ())]
    if not any(requirement.startswith("torch==") for requirement in wanted):
        wanted.append(f"torch=={installed_torch().partition('+')[0]}")
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return python
    stamp.unlink(missing_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    make, fill = [sys.executable, "-m", "venv", "--clear", str(folder)], [str(python), "-m", "pip", "install", *wanted]
    with log.open("w", encoding="utf-8") as output:
        failed = any(subprocess.call(command, stdout=output, stderr=subprocess.STDOUT) for command in (make, fill))
    if failed:
        raise InputError(Problem(name, f"cannot be installed: {last_words(log)}", f"the whole output: {log}"))
    stamp.write_text(json.dumps(wanted), encoding="utf-8")
    return python


def last_words(log: Path) -> str:
    """The last line of a program's output that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")
