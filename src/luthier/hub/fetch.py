"""A reference to a local folder or files: what is there first, then the cache, then the network."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.errors import HubError, Problem
from luthier.hub.bundled import bundled_folder, fetch_bundled
from luthier.hub.cache import cache_dir, ensure
from luthier.hub.hubs import Hub, Kind, RepoMissingError, answers, hub_of, out_of_reach
from luthier.hub.manifest import Manifest
from luthier.hub.refs import HUBS, Bundled, Local, Repo, Web, near_matches, parse_data, parse_model
from luthier.hub.repository import Select, fill
from luthier.hub.select import data_files, files_beside_weights, model_files
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
    select: Select
    variant: str = ""


def fetch_model(ref: str, *, revision: str | None = None, allow_code: bool = False, weights: bool = True) -> LocalModel:
    """The folder of a model, fetched if it is not in the cache. Python files come along only with `allow_code`.

    Without `weights` they are not fetched: the folder may have them all the same. Raises HubError.
    """
    named = parse_model(ref)
    if isinstance(named, Repo):
        _check_revision(ref, revision)
        want = _Want("model", revision, functools.partial(model_files, allow_code=allow_code), "code" * allow_code)
        if not weights and _cached(named, want) is None:
            beside = functools.partial(files_beside_weights, allow_code=allow_code)
            want = replace(want, select=beside, variant=f"config{want.variant}")
        folder, manifest = _fetch_repo(ref, named, want)
        return LocalModel(folder, ref, manifest.hub, manifest.revision)
    if revision is not None:
        raise HubError(Problem(ref, f"it has no revisions (`{revision}` was asked for)", "leave the revision out"))
    if isinstance(named, Bundled):
        manifest = fetch_bundled(named.name)
        return LocalModel(bundled_folder(named.name), ref, manifest.hub, manifest.revision)
    return LocalModel(named.path, ref, "local", None)


def _check_revision(ref: str, revision: str | None) -> None:
    """It becomes a folder's name: no `..`, no drive."""
    if revision is not None and (".." in revision or not re.fullmatch(r"\w[\w./+-]*", revision)):
        raise HubError(Problem(ref, f"{revision!r:.60} cannot be a revision", "use a branch, tag or commit"))


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
    return _cached(repo, want) or _first_that_has_it(ref, repo, want, _possible_hubs(repo))


def _cached(repo: Repo, want: _Want) -> tuple[Path, Manifest] | None:
    folders = [_folder(hub, repo.id, want) for hub in _possible_hubs(repo)]
    return next(((folder, manifest) for folder in folders if (manifest := Manifest.read(folder))), None)


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


def _possible_hubs(repo: Repo) -> list[Hub]:
    if repo.hub is not None:
        return [hub_of(repo.hub)]
    chosen = os.environ.get("LUTHIER_HUB")
    if chosen and chosen not in HUBS:
        raise HubError(Problem("LUTHIER_HUB", f"`{chosen}` is not a hub", "set it to `ms` or `hf`, or unset it"))
    return [hub_of(name) for name in HUBS if not chosen or name == chosen]


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
    return fill(folder, hub, repo, want.kind, want.revision or hub.default_revision, want.select)
