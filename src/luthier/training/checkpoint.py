"""Checkpoints: sealed by a manifest written last, so that a torn one is never resumed from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from luthier import console

MANIFEST = "manifest.json"


def seal(folder: Path) -> None:
    """Writes the manifest: size and SHA-256 of each file, on disk before the manifest is."""
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    temporary = folder / f".{MANIFEST}.tmp"
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(files, handle, indent=2)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(folder / MANIFEST)


def is_whole(folder: Path) -> bool:
    """Whether every file is as it was when the checkpoint was sealed."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(
            (folder / name).stat().st_size == fact["bytes"] and _sha256(folder / name) == fact["sha256"]
            for name, fact in files.items()
        )
    except (OSError, ValueError):
        return False


def newest(folder: Path) -> Path | None:
    """The latest whole checkpoint (`checkpoint-100` is step 100). Later ones are broken: named, and removed.

    Left there, a broken one would count among those kept, and take the place of a whole one.
    """
    named = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    found = sorted(named, key=step_of, reverse=True)
    for checkpoint in found:
        if is_whole(checkpoint):
            return checkpoint
        console.warn(f"{checkpoint.name} is incomplete, and removed")
        shutil.rmtree(checkpoint)
    return None


def folder_of(folder: str | Path, step: int) -> Path:
    """Where the Trainer puts the checkpoint of a step."""
    return Path(folder) / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
