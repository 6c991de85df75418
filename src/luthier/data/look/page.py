"""A look at data as one self-contained page: no script, no network. The rows are hostile text, and Jinja escapes it."""

from __future__ import annotations

from pathlib import Path

from luthier.data import preview
from luthier.data.look.look import Look
from luthier.data.look.show import SIGNS, facts, places, short
from luthier.secrets import masked


def write_page(path: Path, look: Look, tokenizer: preview.Tokenizer | None, *, title: str) -> None:
    """Findings, facts, ledger, lengths, and `look.first` as tokens."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("luthier.data.look", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=lambda number: f"{number:,}", share=lambda part: f"{part:.1%}")
    lengths = look.tokens.lengths if look.tokens else look.characters
    page = environment.get_template("page.html.jinja").render(
        title=title,
        look=look,
        findings=[(finding, SIGNS[finding.weight][0], places(look, finding)) for finding in look.findings],
        facts=list(facts(look)),
        ledger=look.ledger.to_json() if look.ledger else None,
        short=lambda where: short(look, where),
        unit="tokens" if look.tokens else "characters",
        lengths=lengths,
        highest=max(count for _, _, count in lengths.histogram),
        parts=_parts(look),
        rows=[(example, preview.pieces(example, tokenizer)) for example in look.first] if tokenizer else [],
        visible=preview.visible,
    )
    # A lone surrogate cannot be UTF-8; as a character reference the browser shows its replacement sign.
    path.write_bytes(masked(page).encode(errors="xmlcharrefreplace"))


def _parts(look: Look) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """Wholes and their parts: name, count, share."""
    wholes = [("Answers in", look.scripts.answers), ("Questions in", look.scripts.questions)]
    if look.tokens:
        wholes.append(("Tokens by role", look.tokens.roles))
    return [
        (title, [(name, count, count / sum(counts.values())) for name, count in counts.items()])
        for title, counts in wholes
        if len(counts) > 1
    ]
