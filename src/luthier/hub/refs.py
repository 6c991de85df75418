"""What a reference names: text as the user types it → where to look. Touches no network.

    models   bundled:smollm2-135m-instruct   a folder   ms:Qwen/Qwen3-0.6B   hf:Qwen/Qwen3-0.6B   Qwen/Qwen3-0.6B
    data     a file   ms:owner/name   hf:owner/name:train.jsonl   hf:owner/name:data/*.parquet   https://…/rows.json

A path that exists wins over every other reading.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.errors import HubError, Problem

HubName = Literal["ms", "hf"]
HUBS: tuple[HubName, ...] = ("hf", "ms")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SCHEME = re.compile(r"([A-Za-z]{2,}):(.*)", re.DOTALL)  # two letters or more: `C:` is a Windows drive
_PAGES: tuple[tuple[re.Pattern[str], HubName], ...] = (
    (re.compile(r"https?://(?:www\.)?huggingface\.co/([^/?#]+/[^/?#]+)/?"), "hf"),
    (re.compile(r"https?://(?:www\.)?modelscope\.(?:cn|ai)/models/([^/?#]+/[^/?#]+)/?(?:summary)?"), "ms"),
)
_RAW: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"https://github\.com/([^/]+)/([^/]+)/(?:blob|raw)/([^?#]+).*"),
        r"https://raw.githubusercontent.com/\1/\2/\3",
    ),
    (re.compile(r"https://huggingface\.co/(.+?)/blob/([^?#]+).*"), r"https://huggingface.co/\1/resolve/\2"),
)


@dataclass(frozen=True)
class Bundled:
    name: str


@dataclass(frozen=True)
class Local:
    path: Path


@dataclass(frozen=True)
class Repo:
    """A repository on a model hub. `hub` None: whichever has it."""

    hub: HubName | None
    id: str
    pattern: str | None = None
    """Which files of a data set: a path in it, a folder, or a glob. None: its data files."""


@dataclass(frozen=True)
class Web:
    """An address of a file, with a page address already turned into the raw file's."""

    url: str


def parse_model(text: str) -> Bundled | Local | Repo:
    """Raises HubError when `text` can be no reference, or is a path that does not exist."""
    if path := _existing(text):
        if path.is_file():
            fix = f"give the folder that holds config.json and the weights: {path.parent}"
            raise HubError(Problem(text, "this is a file; a model is a folder", fix))
        return Local(path)
    for page, hub in _PAGES:
        if match := page.fullmatch(text):
            return Repo(hub, match[1])
    if match := _SCHEME.fullmatch(text):
        return _with_scheme(text, match[1].lower(), match[2])
    if _REPO.fullmatch(text):
        return Repo(None, text)
    raise _nothing_there(text, "a hub's model is written `owner/name`, the bundled one bundled:smollm2-135m-instruct")


def parse_data(text: str) -> Local | Repo | Web:
    """Raises HubError when `text` can be no reference, or is a path that does not exist."""
    if path := _existing(text):
        if path.is_dir():
            raise HubError(Problem(text, "this is a folder; data is a file", "name the file, or several of them"))
        return Local(path)
    if text.startswith(("https://", "http://")):
        return Web(_raw_address(text))
    if match := _SCHEME.fullmatch(text):
        scheme, rest = match[1].lower(), match[2]
        name, _, pattern = rest.partition(":")
        if scheme in HUBS and _REPO.fullmatch(name):
            return Repo(_hub(scheme), name, pattern or None)
        fix = "write ms:owner/name, hf:owner/name, hf:owner/name:file.jsonl, an https:// address, or a file's path"
        raise HubError(Problem(text, "this names no data", fix))
    hub_hint = f"; for a data set on a hub write hf:{text} or ms:{text}" if _REPO.fullmatch(text) else ""
    raise _nothing_there(text, f"give the path of a file{hub_hint}")


def near_matches(text: str) -> list[str]:
    """Names like the last part of the path `text` in the nearest folder that exists, as the user would type them."""
    path = Path(text).expanduser()
    folder = path.parent
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(path.name.lower(), by_lower, n=3, cutoff=0.6)
    return [str(folder / by_lower[name]) for name in close]


def _existing(text: str) -> Path | None:
    if not text.strip():
        raise HubError(Problem("reference", "it is empty", "name a model or data, for example Qwen/Qwen3-0.6B"))
    try:
        path = Path(text).expanduser()
        return path.absolute() if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # a name that the file system cannot hold, or an unknown ~user
        return None


def _with_scheme(text: str, scheme: str, rest: str) -> Bundled | Repo:
    if scheme == "bundled":
        return Bundled(rest)
    if scheme in HUBS and _REPO.fullmatch(rest):
        return Repo(_hub(scheme), rest)
    what = f"`{rest}` is not of the form owner/name" if scheme in HUBS else f"Luthier knows no place `{scheme}:`"
    fix = "write bundled:NAME, ms:owner/name, hf:owner/name, owner/name, or a folder's path"
    raise HubError(Problem(text, what, fix))


def _hub(scheme: str) -> HubName:
    return "ms" if scheme == "ms" else "hf"


def _raw_address(url: str) -> str:
    if url.startswith("http://") and not re.match(r"http://(127\.0\.0\.1|localhost)[:/]", url):
        fix = f"try https://{url[len('http://') :]}, or download the file yourself and give its path"
        raise HubError(Problem(url, "data over http:// can be changed on its way", fix))
    for page, raw in _RAW:
        if page.fullmatch(url):
            return page.sub(raw, url)
    return url


def _nothing_there(text: str, fix: str) -> HubError:
    close = near_matches(text)
    if close:
        fix = f"did you mean {' or '.join(close)}? Otherwise: {fix}"
    return HubError(Problem(text, "there is no such file or folder", fix))
