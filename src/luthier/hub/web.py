"""A file at an https:// address, into the cache."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from luthier import console
from luthier.errors import HubError, Problem
from luthier.hub.cache import cache_dir, ensure
from luthier.hub.hubs import answers
from luthier.hub.manifest import Manifest
from luthier.hub.transfer import Remote, transfer
from luthier.secrets import bare_address

if TYPE_CHECKING:
    import requests


def fetch_address(url: str) -> Path:
    """The local file of `url`. Raises HubError."""
    folder = cache_dir() / "data" / "web" / hashlib.sha256(url.encode()).hexdigest()[:16]
    manifest = ensure(folder, lambda partial: _fill(url, partial))
    return folder / manifest.files[0].file


def _fill(url: str, folder: Path) -> Manifest:
    parts, where = urlsplit(url), bare_address(url)
    if not answers(f"{parts.scheme}://{parts.netloc}"):
        what = f"it is not in the cache, and {parts.hostname} cannot be reached"
        fix = "check the network or HTTPS_PROXY; or download it where there is a network and give the file's path"
        raise HubError(Problem(where, what, fix))
    name = re.sub(r"[^\w.-]", "_", unquote(parts.path).rsplit("/", 1)[-1]).lstrip(".") or "data"
    with console.progress(f"fetching {name}", None, unit="bytes") as bar:
        transfer(Remote(where, url, lambda response: _check(where, response)), folder / name, bar.advance)
    return Manifest.of(folder, [name], ref=where, hub="web", revision=None)


def _check(where: str, response: requests.Response) -> None:
    status = response.status_code
    if status in (401, 403):
        fix = "download it in a browser where you are logged in, and give the file's path"
        raise HubError(Problem(where, f"the server does not give it to anonymous users (HTTP {status})", fix))
    if status >= 400:
        fix = "open the address in a browser and copy the link of the raw file"
        raise HubError(Problem(where, f"there is no file at this address (HTTP {status})", fix))
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise HubError(Problem(where, "this is a web page, not a data file", "use the link of the raw file"))
