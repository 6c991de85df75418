"""The wanted files of a hub's repository into a folder, each checked against the hub's listing."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from luthier import console
from luthier.errors import HubError, Problem
from luthier.hub import manifest as manifests
from luthier.hub.copies import take_copy
from luthier.hub.hubs import Hub, Kind, Listing, RemoteFile, refused
from luthier.hub.manifest import FileEntry, Manifest
from luthier.hub.transfer import Advance, Remote, transfer

if TYPE_CHECKING:
    import requests

Select = Callable[[Listing, str], list[RemoteFile]]
"""Which files of a listing are wanted; the text says where they are, for messages."""


def fill(folder: Path, hub: Hub, repo: str, kind: Kind, revision: str, select: Select) -> Manifest:
    """Fetch and check every file that `select` wants into `folder`, using what an interrupted call left there.

    Raises HubError.
    """
    where = f"{hub.name}:{repo}"
    listing = hub.listing(repo, kind, revision)
    files = select(listing, where)
    total = sum(file.size or 0 for file in files)
    _check_names(where, files)
    _check_room(where, total, folder)
    with console.progress(f"fetching {where} ({total / 1e6:.1f} MB)", total, unit="bytes") as bar:
        get = functools.partial(_get, hub, repo, kind, listing.revision, folder, bar.advance)
        entries = tuple(get(file) for file in files)
    _remove_others(folder, {entry.file for entry in entries})
    return Manifest(where, hub.name, listing.revision, entries)


def _get(hub: Hub, repo: str, kind: Kind, revision: str, folder: Path, advance: Advance, file: RemoteFile) -> FileEntry:
    """One file, checked: as an interrupted call left it, else a copy on this machine, else from the hub."""
    entry = _checked(folder, file)
    if entry is None and (source := take_copy(hub, repo, kind, file, folder / file.path, folder)):
        entry = _checked(folder, file)
        if entry is not None:
            console.say(f"{file.path}: taken from {source}")
    if entry is not None:
        advance(entry.size)
        return entry
    url, headers = hub.address(repo, kind, revision, file.path)
    check = functools.partial(_check_answer, hub, repo, kind)
    remote = Remote(f"{hub.name}:{repo}", url, check, headers, file.size, file.sha256 or file.git_sha1)
    for _ in range(2):  # a partial file can be damaged on this machine: the second time starts from nothing
        transfer(remote, folder / file.path, advance)
        if entry := _checked(folder, file):
            return entry
        advance(-(folder / file.path).stat().st_size)
        (folder / file.path).unlink()
    what = f"{file.path} came twice with another size or hash than {hub.title} lists for it"
    fix = f"try again later or without a proxy; if {hub.endpoint_variable} names a mirror, try without it"
    raise HubError(Problem(f"{hub.name}:{repo}", what, fix))


def _check_answer(hub: Hub, repo: str, kind: Kind, response: requests.Response) -> None:
    status = response.status_code
    if status in (401, 403):
        raise refused(hub, repo, kind, status)
    if status >= 400:
        what = f"{hub.title} lists a file and does not give it (HTTP {status})"
        raise HubError(Problem(f"{hub.name}:{repo}", what, "try again later, or another revision"))


def _checked(folder: Path, file: RemoteFile) -> FileEntry | None:
    """The entry of a file that is there and equals what the hub lists; else None."""
    path = folder / file.path
    if not path.is_file() or file.size not in (None, path.stat().st_size):
        return None
    if file.git_sha1 and _git_sha1(path) != file.git_sha1:
        return None
    entry = FileEntry.of(folder, file.path)
    return entry if file.sha256 in (None, entry.sha256) else None


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _check_names(where: str, files: list[RemoteFile]) -> None:
    """A listing is a stranger's text: no name in it may lead out of the folder or onto the manifest."""
    for file in files:
        parts = PurePosixPath(file.path).parts
        leaves = file.path.startswith("/") or ".." in parts or any(mark in file.path for mark in "\\:\0")
        if leaves or not parts or parts[0] == manifests.NAME:
            what = f"its listing has the file name {file.path!r}, which would be written outside its own folder"
            raise HubError(Problem(where, what, "do not use this repository, and check the hub's address"))


def _check_room(where: str, total: int, folder: Path) -> None:
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    missing, free = total - there, shutil.disk_usage(folder).free
    if missing > free:
        what = f"it needs {missing / 1e9:.1f} GB more, and {folder.parent} has {free / 1e9:.1f} GB free"
        raise HubError(Problem(where, what, "make room, or set LUTHIER_HOME to a folder on a larger disk"))


def _remove_others(folder: Path, wanted: set[str]) -> None:
    """Files of another commit that an interrupted call left."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
