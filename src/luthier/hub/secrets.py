"""Access tokens stay out of messages and files."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

TOKEN_VARIABLES = ("HF_TOKEN", "MODELSCOPE_API_TOKEN")

_SECRET = re.compile(r"\b(?:hf_|ms-)[\w-]{6,}|(?<=[?&])[\w.-]+=[^\s&'\"]+|(?<=://)[^/\s@]+@")


def without_secrets(error: BaseException) -> str:
    """An error of a library in one line, without access tokens, signed addresses and passwords."""
    lines = str(error).strip().splitlines() or [""]
    text = _SECRET.sub("…", lines[0])
    for variable in TOKEN_VARIABLES:
        if secret := os.environ.get(variable):
            text = text.replace(secret, "…")
    return f"{type(error).__name__}: {text[:300]}"


def bare_address(url: str) -> str:
    """The address without its password and query: either can hold a token."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
