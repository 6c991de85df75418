"""A file at an https:// address, into the cache: resumable, its size checked."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from luthier import console
from luthier.errors import HubError, Problem
from luthier.hub.cache import cache_dir, ensure
from luthier.hub.hubs import CONNECT_SECONDS, Advance, answers, without_secrets
from luthier.hub.manifest import Manifest

if TYPE_CHECKING:
    import requests

ATTEMPTS = 4
READ_SECONDS = 30.0


class _InterruptedError(Exception):
    """The transfer broke off or did not begin; what came is kept and the next attempt goes on from there."""


def fetch_address(url: str) -> Path:
    """The local file of `url`. Raises HubError."""
    folder = cache_dir() / "data" / "web" / hashlib.sha256(url.encode()).hexdigest()[:16]
    manifest = ensure(folder, lambda partial: _fill(url, partial))
    return folder / manifest.files[0].file


def _fill(url: str, folder: Path) -> Manifest:
    parts = urlsplit(url)
    if not answers(f"{parts.scheme}://{parts.netloc}"):
        what = f"it is not in the cache, and {parts.hostname} cannot be reached"
        fix = "check the network or HTTPS_PROXY; or download it where there is a network and give the file's path"
        raise HubError(Problem(shown(url), what, fix))
    name = re.sub(r"[^\w.-]", "_", unquote(parts.path).rsplit("/", 1)[-1]).lstrip(".") or "data"
    _download(url, folder / name)
    (folder / f"{name}.tag").unlink(missing_ok=True)
    return Manifest.of(folder, [name], ref=shown(url), hub="web", revision=None)


def _download(url: str, target: Path) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(url, target)
            return
        except _InterruptedError as error:
            last = error
            time.sleep(0.2 * attempt)
    what = f"the transfer broke off {ATTEMPTS} times, at last with {without_secrets(last.__cause__ or last)}"
    raise HubError(Problem(shown(url), what, "run the command again: it goes on where it stopped")) from last


def _attempt(url: str, target: Path) -> None:
    """One request: the whole file, or with Range what is missing if the server still has the same file."""
    import requests

    incoming, tag = target.with_name(f"{target.name}.incoming"), target.with_name(f"{target.name}.tag")
    headers = {"Accept-Encoding": "identity"}
    if incoming.exists() and tag.exists():
        headers |= {"Range": f"bytes={incoming.stat().st_size}-", "If-Range": tag.read_text(encoding="ascii")}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS * 5, READ_SECONDS)) as response:
            _check(url, response)
            _receive(response, incoming, tag, f"fetching {target.name}")
    except requests.RequestException as error:
        raise _InterruptedError from error
    incoming.replace(target)


def _receive(response: requests.Response, incoming: Path, tag: Path, description: str) -> None:
    goes_on = response.status_code == 206
    had = incoming.stat().st_size if goes_on else 0
    announced = response.headers.get("Content-Length", "")
    total = had + int(announced) if announced.isdigit() and "Content-Encoding" not in response.headers else None
    if not goes_on:
        _remember(response.headers.get("ETag", ""), tag)
    with console.progress(description, total, unit="bytes") as bar, incoming.open("ab" if goes_on else "wb") as stream:
        bar.advance(had)
        _copy(response, stream, bar.advance)
    size = incoming.stat().st_size
    if total is not None and size != total:
        raise _InterruptedError(f"{size} of {total} bytes came")


def _copy(response: requests.Response, stream: Any, advance: Advance) -> None:
    for piece in response.iter_content(1 << 18):
        stream.write(piece)
        stream.flush()
        advance(len(piece))


def _remember(etag: str, tag: Path) -> None:
    """A strong ETag lets a later request ask for the rest of the same file; without one it begins anew."""
    tag.unlink(missing_ok=True)
    if etag.startswith('"'):
        tag.write_text(etag, encoding="ascii")


def _check(url: str, response: requests.Response) -> None:
    status = response.status_code
    if status >= 500 or status in (408, 416, 429):
        raise _InterruptedError(f"HTTP {status}")
    if status in (401, 403):
        fix = "download it in a browser where you are logged in, and give the file's path"
        raise HubError(Problem(shown(url), f"the server does not give it to anonymous users (HTTP {status})", fix))
    if status >= 400:
        fix = "open the address in a browser and copy the link of the raw file"
        raise HubError(Problem(shown(url), f"there is no file at this address (HTTP {status})", fix))
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise HubError(Problem(shown(url), "this is a web page, not a data file", "use the link of the raw file"))


def shown(url: str) -> str:
    """The address without passwords and query: either can hold an access token."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
