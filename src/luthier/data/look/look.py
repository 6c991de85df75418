"""A look at data: what the files hold, what is wrong with the rows, and what they are as tokens."""

from __future__ import annotations

from array import array
from dataclasses import asdict, dataclass
from typing import Any

from luthier.data import served
from luthier.data.ledger import Ledger
from luthier.data.look import checks
from luthier.data.look.columns import Schema
from luthier.data.look.finding import Finding, rows_of
from luthier.data.look.scripts import Scripts, scripts
from luthier.data.look.tokens import Measuring, TokenFacts, too_long
from luthier.data.prepare import fit, gather, no_garbage_collection
from luthier.data.preview import Lengths, lengths_of
from luthier.data.render import Example, Renderer
from luthier.recipe.schema import DataSettings


@dataclass(frozen=True)
class Look:
    """`characters`: lengths of the rows' own text. `tokens`, `ledger` and `first` (rows to show) need a model."""

    files: list[dict[str, Any]]
    schema: Schema
    unused_columns: list[str]
    findings: list[Finding]
    scripts: Scripts
    characters: Lengths
    tokens: TokenFacts | None = None
    ledger: Ledger | None = None
    first: tuple[Example, ...] = ()

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "files": self.files,
            "schema": self.schema.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
            "scripts": asdict(self.scripts),
            "characters": self.characters.to_json(),
        }
        if self.tokens is not None and self.ledger is not None:
            found |= {"ledger": self.ledger.to_json(), **self.tokens.to_json()}
        return found


@dataclass(frozen=True)
class Reader:
    """Whose tokens are counted, how many a sequence may have, and how many the model could take (if it says so)."""

    renderer: Renderer
    max_length: int
    context_length: int | None = None


def look(settings: DataSettings, *, seed: int, reader: Reader | None = None, keep: int = 0) -> Look:
    """Reads the rows as training would, and looks for everything in `checks.CHECKS`.

    Args:
        reader: without one nothing that needs tokens is said.
        keep: sequences to keep in `first`.

    Raises DataError, ModelError or HubError with all problems.
    """
    schema = Schema()
    with no_garbage_collection():
        data = gather(settings, seed=seed, see=schema.see)
    findings = checks.run(data)
    with checks.watched(data, "Reading letters") as rows:
        written = scripts(rows)
    sizes, trained = array("L"), 0
    for row in rows_of(data):
        sizes.append(sum(len(message.content) for message in row.messages))
        trained += sum(len(m.content) for m in row.messages if m.role in ("assistant", "text"))
    facts = (data.files, schema, data.unused_columns)
    about = (written, lengths_of(sizes, trained))
    if reader is None:
        return Look(*facts, findings, *about)
    measuring = Measuring(reader.renderer, len(data.train), keep)
    for train, _ in fit(data, settings, reader.renderer, reader.max_length):
        served.check(reader.renderer, train, settings.train_on)
        measuring.see(train)
    findings = checks.in_order([*findings, *too_long(data.ledger, reader.max_length, reader.context_length)])
    return Look(*facts, findings, *about, measuring.facts(), data.ledger, tuple(measuring.first))
