"""Files that are whole or not there, and a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from luthier.report import words

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""No space left, a file larger than allowed, a user's quota used up."""

# The Rust and C++ libraries that write weights wrap the system's error, or keep its text alone.
FULL_TEXTS = ("No space left on device", "os error 28", "os error 27", "os error 122", "PytorchStreamWriter failed")


class DiskFull(OSError):
    """What there was no room for, and the bytes that it needs."""

    def __init__(self, what: str, needed: int) -> None:
        super().__init__(errno.ENOSPC, what)
        self.what, self.needed = what, needed


def sync(path: Path) -> None:
    """Has a file's content, or a folder's names, on the disk on return. Windows opens no folder for that."""
    if path.is_dir():
        with contextlib.suppress(OSError):  # not every file system syncs a folder
            _sync(path)
    else:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and has it on disk on return."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(file)
        sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write beside `folder`; on leaving, it is on disk and takes its place by one rename."""
    beside = partial(folder)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        yield beside
        for file in (path for path in beside.rglob("*") if path.is_file()):
            sync(file)
        sync(beside)
        shutil.rmtree(folder, ignore_errors=True)
        beside.replace(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that there is no room to write."""
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in FULL) or any(text in str(seen) for text in FULL_TEXTS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def fullness(error: BaseException, path: Path) -> str:
    """What a full disk at `path` needs, as far as the error knows it, and has."""
    wanted = f"{error.what} needs {words.size(error.needed)}, and " if isinstance(error, DiskFull) else ""
    return f"the disk is full: {wanted}{words.size(free_bytes(path))} are free"


def free_bytes(path: Path) -> int:
    """Room on the disk that holds `path`, which need not exist yet."""
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free
