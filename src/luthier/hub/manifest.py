"""The list of files that makes a fetched folder complete: `luthier-manifest.json`, written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "luthier-manifest.json"


@dataclass(frozen=True)
class FileEntry:
    file: str
    """Path inside the folder, with forward slashes."""
    size: int
    sha256: str

    @classmethod
    def of(cls, folder: Path, file: str) -> FileEntry:
        path = folder / file
        return cls(file, path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class Manifest:
    """What a folder holds and where it came from. `revision` is the commit when the hub says it."""

    ref: str
    hub: str
    revision: str | None
    files: tuple[FileEntry, ...]

    @classmethod
    def of(cls, folder: Path, files: Iterable[str], *, ref: str, hub: str, revision: str | None) -> Manifest:
        return cls(ref, hub, revision, tuple(FileEntry.of(folder, file) for file in sorted(files)))

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a complete folder; None when it is missing, unreadable, or a file's size differs from it."""
        try:
            raw = json.loads((folder / NAME).read_text(encoding="utf-8"))
            files = tuple(FileEntry(**entry) for entry in raw["files"])
            whole = all((folder / entry.file).stat().st_size == entry.size for entry in files)
            return cls(raw["ref"], raw["hub"], raw["revision"], files) if whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Written to a temporary name first: a manifest is there whole or not at all."""
        temporary = folder / (NAME + ".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(folder / NAME)


def sha256(path: Path, advance: Callable[[int], object] = lambda n: None) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces of 1 MiB; `advance` hears the bytes of each."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()
