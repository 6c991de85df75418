"""Access tokens, keys and passwords stay out of all that leaves the program: the one place that knows them.

`masked` is used by every way out: what is printed, what libraries log, tracebacks, the run folder, report and pages.
"""

from __future__ import annotations

import functools
import html
import json
import os
import re
from typing import Any
from urllib.parse import quote, urlsplit

VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MODELSCOPE_API_TOKEN",
    "SWANLAB_API_KEY",
    "WANDB_API_KEY",
    "LUTHIER_API_KEY",
)
SHORTEST = 8  # characters: what is shorter is no token, and stands in many a word
MASK = "…"

_PATTERN = re.compile(
    r"""\b(?-i:hf_)[a-z0-9]{16,}
      | \bms-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}
      | \bwandb_v1_[\w-]{16,}
      | (?P<bearer>\bbearer\s+)[\w.~+/=-]{8,}
      | (?<=://)[^/\s@"'<>\\]+(?P<host>@)
      | (?P<parameter>[?&](?:[\w.-]*(?:token|key|secret|signature|password|credential)|sig)=)[^\s&"'<>\\]+
    """,
    re.IGNORECASE | re.VERBOSE,
)


def masked(text: str) -> str:
    """The text without tokens and keys: those of the environment, all that look like one, and those in addresses."""
    for secret in filter(None, (os.environ.get(name, "") for name in VARIABLES)):
        if len(secret) >= SHORTEST:
            for written in _ways_to_write(secret):
                text = text.replace(written, MASK)
    return _PATTERN.sub(_mask, text)


@functools.lru_cache
def _ways_to_write(secret: str) -> set[str]:
    """As it is, in an address, in JSON, and in a page."""
    return {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], html.escape(secret)}


def _mask(found: re.Match[str]) -> str:
    return f"{found['bearer'] or found['parameter'] or ''}{MASK}{found['host'] or ''}"


def without_secrets(error: BaseException) -> str:
    """An error of a library in one line, masked."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {masked(lines[0])[:300]}"


def bare_address(url: str) -> str:
    """The address without its password and query: either can hold a token."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Masked:
    """A text stream on which only masked text is written; in all else it is the stream itself."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
