"""What Luthier asks of a model hub, and the errors that both hubs have in common."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from luthier.errors import HubError, Problem
from luthier.hub.refs import HubName
from luthier.secrets import without_secrets

Kind = Literal["model", "dataset"]

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 4.0
LISTING_SECONDS = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository's listing. The hashes are those that the hub gives, if it does."""

    path: str
    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None
    """The file's git blob id, which Hugging Face gives for files that are not in its large file store."""

    def __post_init__(self) -> None:
        """Raises TypeError for a listing that is none: a hub's libraries take what comes."""
        for value, kind in (
            (self.path, str),
            (self.size or 0, int),
            (self.sha256 or "", str),
            (self.git_sha1 or "", str),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{value!r:.60} in place of {kind.__name__}")


@dataclass(frozen=True)
class Listing:
    revision: str
    """The commit where the hub says it, else the branch or tag asked for."""
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """A model hub. Its methods raise HubError; RepoMissingError when there is no such repository."""

    name: HubName
    title: str
    token_variable: str
    endpoint_variable: str
    default_revision: str

    @property
    def endpoint(self) -> str: ...

    @property
    def signed_in(self) -> bool:
        """Whether there is an access token: in the environment, or from the hub's own login command."""
        ...

    def listing(self, repo: str, kind: Kind, revision: str) -> Listing: ...

    def address(self, repo: str, kind: Kind, revision: str, path: str) -> tuple[str, dict[str, str]]:
        """Where a file's content is, and the headers to ask with: the user's access token if there is one."""
        ...

    def upload(self, repo: str, folder: Path, files: Sequence[str], *, public: bool, licence: str) -> str:
        """Files of a folder into a model repository, made (private, unless `public`) if it is not there yet.

        Returns the repository's page. `licence`: its SPDX name in lower case, or "other".
        """
        ...


class RepoMissingError(HubError):
    """The hub has no such repository, or does not show it to this user."""


def hub_of(name: HubName) -> Hub:
    if name == "ms":
        from luthier.hub.modelscope import ModelScope

        return ModelScope()
    from luthier.hub.huggingface import HuggingFace

    return HuggingFace()


def endpoint_of(variable: str, default: str) -> str:
    """A hub's address: the environment's, which people also write without `https://`, or the default."""
    address = (os.environ.get(variable) or default).rstrip("/")
    return address if "://" in address else f"https://{address}"


def answers(endpoint: str) -> bool:
    """Whether anything answers HTTP at `endpoint`, through the user's proxy if there is one.

    The hubs' own clients take up to 22 s to find out that there is no network. In a thread, because looking a name up
    has no time limit of its own.
    """
    import requests

    outcome: list[bool] = []

    def ask() -> None:
        try:
            requests.head(endpoint, timeout=(CONNECT_SECONDS, ANSWER_SECONDS), allow_redirects=False)
            outcome.append(True)
        except requests.RequestException:
            outcome.append(False)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return outcome == [True]


def repo_missing(hub: Hub, repo: str, kind: Kind, *, may_be_private: bool = False) -> RepoMissingError:
    other = "hf" if hub.name == "ms" else "ms"
    fix = f"check the spelling, or try the other hub: {other}:{repo}"
    if may_be_private:
        fix += f"; if it is private, set {hub.token_variable} to your access token"
    return RepoMissingError(Problem(f"{hub.name}:{repo}", f"{hub.title} has no such {_noun(kind)}", fix))


def revision_missing(hub: Hub, repo: str, revision: str) -> HubError:
    fix = f"use a branch, tag or commit of that repository; the default is `{hub.default_revision}`"
    return HubError(Problem(f"{hub.name}:{repo}", f"it has no revision `{revision}`", fix))


def refused(hub: Hub, repo: str, kind: Kind, status: int | None) -> HubError:
    """The hub wants to know who asks (401), or does not let this user in (403, gated)."""
    what = f"{hub.title} does not give this {_noun(kind)} to {'your account' if hub.signed_in else 'anonymous users'}"
    if hub.signed_in:
        fix = f"accept its terms on {hub.endpoint}, and check that your access token ({hub.token_variable}) may read it"
    else:
        fix = f"accept its terms on {hub.endpoint} if it has any, then set {hub.token_variable} to your access token"
    return HubError(Problem(f"{hub.name}:{repo}", f"{what} (HTTP {status or 401})", fix))


def may_not_write(hub: Hub, repo: str, status: int | None) -> HubError:
    """The access token is not known (401), or may not write to this repository (403)."""
    what = f"{hub.title} does not let your account write there (HTTP {status or 401})"
    fix = f"use a name of your own, and an access token that may write ({hub.token_variable})"
    return HubError(Problem(f"{hub.name}:{repo}", what, fix))


def upload_failed(hub: Hub, repo: str, error: BaseException) -> HubError:
    what = f"{hub.title} did not take it: {without_secrets(error)}"
    fix = "check the network, and run the command again: what is there already is not sent twice"
    return HubError(Problem(f"{hub.name}:{repo}", what, fix))


def out_of_reach(where: str, *hubs: Hub) -> HubError:
    names = " and ".join(f"{hub.title} ({hub.endpoint})" for hub in hubs)
    variables = " or ".join(hub.endpoint_variable for hub in hubs)
    return HubError(
        Problem(
            where,
            f"it is not in the cache, and {names} cannot be reached",
            f"check the network or HTTPS_PROXY; set {variables} to a mirror; "
            f"or fetch it where there is a network and give the folder's path",
        )
    )


def broke_off(hub: Hub, repo: str, error: BaseException) -> HubError:
    what = f"{hub.title} broke off: {without_secrets(error)}"
    fix = "run the command again: it goes on where it stopped"
    return HubError(Problem(f"{hub.name}:{repo}", what, fix))


def no_listing(hub: Hub, repo: str, error: BaseException) -> HubError:
    what = f"{hub.title} answers with something that is no list of files: {without_secrets(error)}"
    fix = f"try again later; if {hub.endpoint_variable} names a mirror, try without it"
    return HubError(Problem(f"{hub.name}:{repo}", what, fix))


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """A hub library's notes about retries would break the progress display; what fails in the end is raised."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _noun(kind: Kind) -> str:
    return "model" if kind == "model" else "data set"
