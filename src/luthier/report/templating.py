"""Pages from templates: no network, and no script but the one of the curves. A page opens from a disk and prints.

Data and answers are hostile text. Jinja escapes all of it, and the page's own policy forbids loading, and any script
whose hash is not that of ours.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from luthier.report import disk, words
from luthier.report.languages import Language
from luthier.secrets import masked


def write_page(path: Path, template: str, language: Language, contents: dict[str, Any]) -> Path:
    """A template of this folder, whole or not at all, without tokens and keys."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=PackageLoader("luthier.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        count=lambda number: f"{number:,}",
        loss=words.loss,
        perplexity=words.perplexity,
        percent=words.percent,
        size=words.size,
        duration=words.duration,
    )
    templates.globals.update(say=language.html, recorded=language.recorded, lang=language.code)
    script = (resources.files("luthier.report") / "templates" / "curve.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    templates.globals.update(script=Markup(script), script_hash=Markup(f"'sha256-{digest}'"))
    page = templates.get_template(template).render(contents)
    # A lone surrogate in an answer cannot be UTF-8; as a character reference the browser shows its replacement sign.
    disk.replace(path, masked(page).encode(errors="xmlcharrefreplace"))
    return path


def shown(value: Any, language: Language) -> str:
    """A setting's value as a reader would write it."""
    if value is None:
        return language.say("none")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
