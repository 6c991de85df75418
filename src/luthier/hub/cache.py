"""Where fetched things live, and how a folder there becomes complete.

    <cache>/models/bundled/smollm2-135m-instruct/
    <cache>/models/hf/Qwen--Qwen3-0.6B/main/
    <cache>/data/ms/owner--name/master/

A folder is filled under the name `….partial` and renamed when its manifest stands in it, so a folder without
`.partial` is always whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from luthier import console
from luthier.errors import HubError, Problem
from luthier.hub.manifest import Manifest


def cache_dir() -> Path:
    """Luthier's cache: `LUTHIER_HOME`, else the platform's cache folder. It may not exist yet."""
    if home := os.environ.get("LUTHIER_HOME"):
        return Path(home).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "luthier"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "luthier"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier"


def ensure(folder: Path, fill: Callable[[Path], Manifest]) -> Manifest:
    """The manifest of a complete `folder`; if it is not there yet, `fill` makes its content.

    `fill` gets a folder which may hold what an interrupted call left. Of two processes, one fills and one waits.
    Raises HubError where the folder cannot be written.
    """
    if manifest := Manifest.read(folder):
        return manifest
    try:
        return _filled(folder, fill)
    except OSError as error:  # no permission, no room, a name that this file system cannot hold
        where, fix = (
            f"cache {folder}",
            "make it writable, or set LUTHIER_HOME to another folder, and run the command again",
        )
        reason = f"{error.strerror or error}"
        raise HubError(Problem(where, f"cannot be filled: {reason[:200]}", fix)) from error


def _filled(folder: Path, fill: Callable[[Path], Manifest]) -> Manifest:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if manifest := Manifest.read(folder):  # another process filled it while this one waited
            return manifest
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(exist_ok=True)
        manifest = fill(partial)
        manifest.write(partial)
        if folder.exists():  # a file of it was deleted or changed by hand
            shutil.rmtree(folder)
        partial.rename(folder)
    return manifest


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.say(f"another process is fetching {folder.name}; waiting for it …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
