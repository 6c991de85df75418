"""A reference to a local folder or files: what is there first, then the cache, then the network."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from luthier import console
from luthier.errors import HubError, Problem
from luthier.hub import manifest as manifests
from luthier.hub.bundled import bundled_folder, fetch_bundled
from luthier.hub.cache import cache_dir, ensure
from luthier.hub.copies import take_copy
from luthier.hub.hubs import Advance, Hub, Kind, Listing, RemoteFile, RepoMissingError, answers, hub_of, out_of_reach
from luthier.hub.manifest import FileEntry, Manifest
from luthier.hub.refs import HUBS, Bundled, HubName, Local, Repo, Web, near_matches, parse_data, parse_model
from luthier.hub.select import data_files, model_files
from luthier.hub.web import fetch_address


@dataclass(frozen=True)
class LocalModel:
    """A model's folder, complete, and where it came from.

    `hub` is "local", "bundled", "ms" or "hf". `revision` is the commit where the hub says it; None for a local folder.
    """

    path: Path
    ref: str
    hub: str
    revision: str | None


@dataclass(frozen=True)
class _Want:
    """What of a repository is fetched. `variant` keeps different selections of one revision apart in the cache."""

    kind: Kind
    revision: str | None
    select: Callable[[Listing, str], list[RemoteFile]]
    variant: str = ""


def fetch_model(ref: str, *, revision: str | None = None, allow_code: bool = False) -> LocalModel:
    """The folder of a model, fetched if it is not in the cache. Python files come along only with `allow_code`.

    Raises HubError.
    """
    named = parse_model(ref)
    if isinstance(named, Repo):
        want = _Want("model", revision, functools.partial(model_files, allow_code=allow_code), "code" * allow_code)
        folder, manifest = _fetch_repo(ref, named, want)
        return LocalModel(folder, ref, manifest.hub, manifest.revision)
    if revision is not None:
        raise HubError(Problem(ref, f"it has no revisions (`{revision}` was asked for)", "leave the revision out"))
    if isinstance(named, Bundled):
        manifest = fetch_bundled(named.name)
        return LocalModel(bundled_folder(named.name), ref, manifest.hub, manifest.revision)
    return LocalModel(named.path, ref, "local", None)


def fetch_data(ref: str) -> list[Path]:
    """The local data files of a reference, in the order of their names. Raises HubError."""
    named = parse_data(ref)
    if isinstance(named, Local):
        return [named.path]
    if isinstance(named, Web):
        return [fetch_address(named.url)]
    pattern = named.pattern
    variant = hashlib.sha256(pattern.encode()).hexdigest()[:8] if pattern else ""
    want = _Want("dataset", None, lambda listing, where: data_files(listing, where, pattern), variant)
    folder, manifest = _fetch_repo(ref, named, want)
    return [folder / entry.file for entry in manifest.files]


def _fetch_repo(ref: str, repo: Repo, want: _Want) -> tuple[Path, Manifest]:
    """From the first of the possible hubs that has it: in the cache, else over the network."""
    hubs = [hub_of(name) for name in _possible_hubs(repo)]
    for hub in hubs:
        folder = _folder(hub, repo.id, want)
        if manifest := Manifest.read(folder):
            return folder, manifest
    return _first_that_has_it(ref, repo, want, hubs)


def _first_that_has_it(ref: str, repo: Repo, want: _Want, hubs: list[Hub]) -> tuple[Path, Manifest]:
    with ThreadPoolExecutor(len(hubs)) as pool:
        reached = list(pool.map(lambda hub: answers(hub.endpoint), hubs))
    unreached = [hub for hub, there in zip(hubs, reached, strict=True) if not there]
    if len(unreached) == len(hubs):
        raise _with_near_folders(out_of_reach(ref, *hubs), repo)
    problems: list[Problem] = []
    for hub in (hub for hub, there in zip(hubs, reached, strict=True) if there):
        folder = _folder(hub, repo.id, want)
        try:
            return folder, ensure(folder, functools.partial(_fill, hub, repo.id, want))
        except RepoMissingError as error:
            problems += error.problems
    for hub in unreached:
        problems += out_of_reach(f"{hub.name}:{repo.id}", hub).problems
    raise _with_near_folders(RepoMissingError(*problems), repo)


def _possible_hubs(repo: Repo) -> tuple[HubName, ...]:
    if repo.hub is not None:
        return (repo.hub,)
    chosen = os.environ.get("LUTHIER_HUB")
    if not chosen:
        return HUBS
    for name in HUBS:
        if name == chosen:
            return (name,)
    raise HubError(Problem("LUTHIER_HUB", f"`{chosen}` is not a hub", "set it to `ms` or `hf`, or unset it"))


def _with_near_folders(error: HubError, repo: Repo) -> HubError:
    """A mistyped path such as `models/qwne` looks like a hub's `owner/name`."""
    close = near_matches(repo.id) if repo.hub is None else []
    if not close:
        return error
    problem = Problem(repo.id, "there is no folder of that name either", f"did you mean {' or '.join(close)}?")
    return type(error)(*error.problems, problem)


def _folder(hub: Hub, repo: str, want: _Want) -> Path:
    root = cache_dir() / ("models" if want.kind == "model" else "data") / hub.name / repo.replace("/", "--")
    revision = (want.revision or hub.default_revision).replace("/", "--")
    return root / (f"{revision}+{want.variant}" if want.variant else revision)


def _fill(hub: Hub, repo: str, want: _Want, folder: Path) -> Manifest:
    """Fetch and check every file that is wanted into `folder`."""
    where = f"{hub.name}:{repo}"
    listing = hub.listing(repo, want.kind, want.revision or hub.default_revision)
    files = want.select(listing, where)
    total = sum(file.size or 0 for file in files)
    _check_names(where, files)
    _check_room(where, total, folder)
    with console.progress(f"fetching {where} ({len(files)} files, {total / 1e6:.0f} MB)", total, unit="bytes") as bar:
        get = functools.partial(_get, hub, repo, want.kind, listing.revision, folder, bar.advance)
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
    for fresh in (False, True):
        (folder / file.path).unlink(missing_ok=True)
        hub.download(repo, kind, revision, file, folder, advance, fresh)
        if entry := _checked(folder, file):
            return entry
    what = f"{file.path} came twice with another size or hash than {hub.title} lists for it"
    fix = f"try again later or without a proxy; if {hub.endpoint_variable} names a mirror, try without it"
    raise HubError(Problem(f"{hub.name}:{repo}", what, fix))


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
        if leaves or not parts or parts[0] in (".cache", manifests.NAME):
            what = f"its listing has the file name {file.path!r}, which would be written outside its own folder"
            raise HubError(Problem(where, what, "do not use this repository, and check the hub's address"))


def _check_room(where: str, total: int, folder: Path) -> None:
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    missing, free = total - there, shutil.disk_usage(folder).free
    if missing > free:
        what = f"it needs {missing / 1e9:.1f} GB more, and {folder.parent} has {free / 1e9:.1f} GB free"
        raise HubError(Problem(where, what, "make room, or set LUTHIER_HOME to a folder on a larger disk"))


def _remove_others(folder: Path, wanted: set[str]) -> None:
    """What the hubs' clients keep while they work, and files of another commit that an interrupted call left."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
