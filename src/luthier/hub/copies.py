"""Large files that this machine already has: other revisions in Luthier's cache, and the hubs' own caches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from luthier.hub.hubs import Hub, Kind, RemoteFile

WORTH_LOOKING = 1_000_000  # bytes: below, a download is as fast


def take_copy(hub: Hub, repo: str, kind: Kind, file: RemoteFile, target: Path, folder: Path) -> Path | None:
    """Put a copy of `file` at `target` if one of its size is at hand, and return where it was. The caller checks it.

    `folder` is the one being filled: those beside it hold other revisions of the same repository.
    """
    if file.sha256 is None or file.size is None or file.size < WORTH_LOOKING:
        return None
    for candidate in _candidates(hub, repo, kind, file.path, folder):
        if candidate.is_file() and candidate.stat().st_size == file.size:
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(candidate.resolve(), target)
            return candidate
    return None


def _candidates(hub: Hub, repo: str, kind: Kind, path: str, folder: Path) -> Iterator[Path]:
    for other in sorted(folder.parent.iterdir()):
        if other != folder and other.is_dir():
            yield other / path
    name = f"{kind}s--{repo.replace('/', '--')}"
    if hub.name == "hf":
        yield from _snapshots(_hugging_face_cache() / name, path)
    else:
        cache = Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope")
        yield from _snapshots(cache / f"{kind}s" / repo.replace("/", "--"), path)
        for older in (cache / f"{kind}s", cache / "hub" / f"{kind}s", cache / "hub", cache):
            yield older / repo.replace(".", "___") / path


def _snapshots(repository: Path, path: str) -> Iterator[Path]:
    snapshots = repository / "snapshots"
    if snapshots.is_dir():
        yield from (snapshot / path for snapshot in sorted(snapshots.iterdir()))


def _hugging_face_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)
