"""One file over HTTP, resumable: after an error in the same call, and after an interruption in the next one.

The hubs' clients list the files and this fetches them: huggingface_hub 2.4 throws a partial file away when its process
ends, and computes no SHA-256 over plain HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from luthier import __version__
from luthier.errors import HubError, Problem
from luthier.secrets import without_secrets

if TYPE_CHECKING:
    import requests

Advance = Callable[[int], None]

ATTEMPTS = 5  # in a row that bring nothing new
TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two pieces
PIECE = 1 << 16  # bytes: at most so much is lost when a connection breaks


@dataclass(frozen=True)
class Remote:
    """A file to transfer. `digest` (any hash the listing gives) tells whether a partial file belongs to it."""

    where: str
    """How messages call it."""
    url: str
    check: Callable[[requests.Response], None]
    """Raises HubError for an answer that no retry can better."""
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    digest: str | None = None


class _InterruptedError(Exception):
    """The transfer broke off or did not begin; what came is kept and the next attempt goes on from there."""


def transfer(remote: Remote, target: Path, advance: Advance) -> None:
    """Fetch `remote` to `target`. `advance` hears the bytes, negative when some came in vain.

    The content is not checked here, only that all of what the server announced came. Raises HubError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _Partial(target, remote, advance)
    fruitless = 0
    while fruitless < ATTEMPTS:
        had = partial.size
        try:
            _attempt(remote, partial)
            partial.finish()
            return
        except _InterruptedError as error:
            last = error.__cause__ or error
            fruitless = 0 if partial.size > had else fruitless + 1
            time.sleep(0.5 * fruitless)
    what = f"{target.name} broke off, and {ATTEMPTS} more attempts brought nothing; the last: {without_secrets(last)}"
    raise HubError(Problem(remote.where, what, "run the command again: it goes on where it stopped")) from last


class _Partial:
    """What has come of a file: `NAME.incoming`, and in `NAME.tag` the digest or ETag that says of which version."""

    def __init__(self, target: Path, remote: Remote, advance: Advance) -> None:
        self.target = target
        self.file = target.with_name(f"{target.name}.incoming")
        self._tag = target.with_name(f"{target.name}.tag")
        self._advance = advance
        self._reported = 0
        if remote.digest is not None and self.tag != remote.digest:
            self.begin(remote.digest)
        self.report()

    @property
    def tag(self) -> str:
        return self._tag.read_text(encoding="utf-8") if self._tag.exists() else ""

    @property
    def size(self) -> int:
        """The bytes that can be kept: none if nothing says what they belong to."""
        return self.file.stat().st_size if self.file.exists() and self.tag else 0

    def begin(self, tag: str) -> None:
        self.file.unlink(missing_ok=True)
        self._tag.write_text(tag, encoding="utf-8")
        self.report()

    def fill(self, pieces: Iterator[bytes]) -> None:
        with self.file.open("ab") as stream:
            for piece in pieces:
                stream.write(piece)
                self._reported += len(piece)
                self._advance(len(piece))

    def report(self) -> None:
        size = self.size
        self._advance(size - self._reported)
        self._reported = size

    def finish(self) -> None:
        self.file.touch()  # an empty file has no piece
        self.file.replace(self.target)
        self._tag.unlink(missing_ok=True)


def _attempt(remote: Remote, partial: _Partial) -> None:
    """One request: for the whole file, or with Range for what is missing of it."""
    import requests

    if remote.size is not None and partial.size == remote.size:
        return
    headers = {"User-Agent": f"luthier/{__version__}", "Accept-Encoding": "identity", **remote.headers}
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
        if remote.digest is None:
            headers["If-Range"] = partial.tag
    try:
        with requests.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            _receive(remote, partial, response)
    except requests.RequestException as error:
        raise _InterruptedError from error


def _receive(remote: Remote, partial: _Partial, response: requests.Response) -> None:
    status = response.status_code
    if status == 416:
        partial.begin(partial.tag)
    if status >= 500 or status in (408, 416, 429):
        raise _InterruptedError(f"HTTP {status}")
    if remote.url.startswith("https://") and not response.url.startswith("https://"):
        what = "the server sends on to an address without https://, where data can be changed on its way"
        raise HubError(Problem(remote.where, what, "download the file yourself and give its path"))
    remote.check(response)
    if status != 206:
        partial.begin(remote.digest or _strong_etag(response))
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {partial.size}-"):
        partial.begin(partial.tag)
        raise _InterruptedError(f"the server answered with another range: {response.headers.get('Content-Range')}")
    expected = _expected_size(partial.size, response)
    partial.fill(response.iter_content(PIECE))
    size = partial.file.stat().st_size
    if expected not in (None, size):  # urllib3 before version 2 does not tell
        raise _InterruptedError(f"{size} of {expected} bytes came")


def _expected_size(had: int, response: requests.Response) -> int | None:
    """Of the whole file; unknown when the server does not say or sends another form of it (compressed)."""
    announced = response.headers.get("Content-Length", "")
    return had + int(announced) if announced.isdigit() and "Content-Encoding" not in response.headers else None


def _strong_etag(response: requests.Response) -> str:
    """What lets a later request ask for the rest of the same file. A weak ETag does not."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else ""
