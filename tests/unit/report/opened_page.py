"""A page as a browser takes it apart."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

HOSTILE = "</p></style><script>alert(1)</script><img src=https://example.org/x onerror='a()'>\"&amp;{{ 7*7 }}"


SCRIPT = (resources.files("luthier.report") / "templates" / "curve.js").read_text(encoding="utf-8")


def policy_of_curves() -> str:
    """What a page with curves tells the browser: it loads nothing, and runs our script alone."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


class Page(HTMLParser):
    """The page as a browser takes it apart."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.headings: list[str] = []
        self.scripts: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))
        self.text = "".join(self.texts)
        self.line = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)
            return
        self.texts.append(data)
        if self.elements and self.elements[-1][0] == "h2" and data.strip():
            self.headings.append(data)

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]
