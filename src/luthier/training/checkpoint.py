"""Checkpoints: written beside their place, sealed by a manifest written last, and renamed.

    checkpoints/.saving/checkpoint-100/     being written; sealed when its manifest.json is there
    checkpoints/checkpoint-100/             whole
    checkpoints/.removing/checkpoint-80/    being deleted

A process may be killed between any two of these steps: `settle` puts the folder in order before the next start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from luthier import console
from luthier.report import disk

MANIFEST = "manifest.json"
SAVING, REMOVING = ".saving", ".removing"


@contextlib.contextmanager
def saving(folder: Path, step: int) -> Iterator[Path]:
    """A folder to write `checkpoint-STEP` into; on leaving, the checkpoint is sealed and takes its place.

    An error inside leaves nothing behind, and what was there before as it was.
    """
    beside = folder / SAVING
    shutil.rmtree(beside, ignore_errors=True)
    try:
        yield beside
        seal(folder_of(beside, step))
        _take_its_place(folder, step)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _take_its_place(folder: Path, step: int) -> None:
    """One rename. A checkpoint of the same step (an evaluation was still due then) is put away first."""
    _remove(folder_of(folder, step))
    folder_of(folder / SAVING, step).replace(folder_of(folder, step))
    disk.sync(folder)


def seal(folder: Path) -> None:
    """Writes the manifest: size and SHA-256 of each file, all of them on disk before the manifest is."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        disk.sync(file)
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    disk.replace(folder / MANIFEST, json.dumps(files, indent=2).encode())


def is_whole(folder: Path) -> bool:
    """Whether every file is as it was when the checkpoint was sealed."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(
            (folder / name).stat().st_size == fact["bytes"] and _sha256(folder / name) == fact["sha256"]
            for name, fact in files.items()
        )
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):  # no manifest of ours
        return False


def settle(folder: Path) -> Path | None:
    """Puts right what a killed process left, by name; returns the latest checkpoint, or None where there is none.

    A sealed checkpoint that was not yet renamed takes its place. What is broken is removed: left there, it would count
    among those kept, and take the place of a whole one.
    """
    for left in _checkpoints(folder / SAVING):
        if is_whole(left):
            _take_its_place(folder, step_of(left))
        else:
            console.warn(f"{left.name} was being written when the run was killed, and is removed")
    for name in (SAVING, REMOVING):
        shutil.rmtree(folder / name, ignore_errors=True)
    whole = None
    for checkpoint in reversed(_checkpoints(folder)):
        if is_whole(checkpoint):
            whole = whole or checkpoint
        else:
            console.warn(f"{checkpoint.name} is incomplete, and removed")
            _remove(checkpoint)
    return whole


def rotate(folder: Path, keep: int | None, best: str | Path | None = None) -> None:
    """Removes the oldest checkpoints beyond `keep` (None: none of them), but not the latest and not `best`."""
    found = _checkpoints(folder)
    spared = {path.name for path in found[-1:]} | ({Path(best).name} if best else set())
    surplus = max(0, len(found) - max(keep, len(spared))) if keep else 0
    for checkpoint in [path for path in found if path.name not in spared][:surplus]:
        _remove(checkpoint)


def folder_of(folder: str | Path, step: int) -> Path:
    """Where the Trainer puts the checkpoint of a step."""
    return Path(folder) / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted((path for path in folder.glob("*") if re.fullmatch(r"checkpoint-\d+", path.name)), key=step_of)


def _remove(checkpoint: Path) -> None:
    """Gone by one rename, so that none is ever half there under its own name."""
    if not checkpoint.exists():
        return
    away = checkpoint.parent / REMOVING
    away.mkdir(exist_ok=True)
    checkpoint.replace(away / checkpoint.name)
    disk.sync(checkpoint.parent)
    shutil.rmtree(away, ignore_errors=True)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
