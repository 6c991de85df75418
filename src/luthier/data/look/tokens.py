"""The rows as tokens: how long, whose, how many of them are the same at the start, and what is too long."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from luthier.data.conversation import Conversation
from luthier.data.ledger import Entry, Ledger
from luthier.data.look.finding import PLACES, Finding, Place
from luthier.data.prepare import Fitted
from luthier.data.preview import Lengths, lengths_of
from luthier.data.render import IGNORE, Example, Renderer

ROLE_ROWS = 5_000  # rows whose turns are encoded one by one, spread over all
SYSTEMS = 10_000  # different beginnings that are told apart


@dataclass
class _Prefix:
    """What `rows` sequences have in common at their start."""

    ids: list[int]
    rows: int = 0

    def see(self, example: Example) -> None:
        self.rows += 1
        if example.input_ids[: len(self.ids)] != self.ids:
            pairs = zip(self.ids, example.input_ids, strict=False)
            same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(self.ids), len(example.input_ids)))
            self.ids = self.ids[:same]


@dataclass(frozen=True)
class SharedPrefix:
    """Sequences with one system prompt begin with the same tokens, which a micro-batch computes once.

    `tokens`: how many in the most frequent of them; `sequences`: how many have that one. `repeated`: tokens of all
    sequences that another one of them has as well, the first of each left out.
    """

    tokens: int
    sequences: int
    repeated: int


@dataclass(frozen=True)
class TokenFacts:
    """`roles`: tokens by who wrote them in `role_rows` rows; "template" is what the chat template puts around turns."""

    lengths: Lengths
    roles: dict[str, int]
    role_rows: int
    prefix: SharedPrefix

    def to_json(self) -> dict[str, Any]:
        return {
            "lengths": self.lengths.to_json(),
            "roles": {"rows": self.role_rows, "tokens": self.roles},
            "prefix": vars(self.prefix)
            | {"share": round(self.prefix.repeated / self.lengths.tokens, 4) if self.lengths.tokens else 0.0},
        }


@dataclass
class Measuring:
    """Sees the fitted rows part by part and keeps numbers only, besides the first `keep` sequences."""

    renderer: Renderer
    rows: int
    keep: int = 0
    first: list[Example] = field(default_factory=list)
    _sizes: array[int] = field(default_factory=lambda: array("L"))
    _labelled: int = 0
    _prefixes: dict[str | None, _Prefix] = field(default_factory=dict)
    _roles: Counter[str] = field(default_factory=Counter)
    _role_rows: int = 0
    _seen: int = 0

    def see(self, part: list[Fitted]) -> None:
        every = max(1, self.rows // ROLE_ROWS)
        self._see_roles([row for at, row in enumerate(part, self._seen) if at % every == 0])
        self._seen += len(part)
        for row, examples in part:
            system = row.messages[0].content if row.messages[0].role == "system" else None
            for example in examples:
                self._sizes.append(len(example.input_ids))
                self._labelled += len(example.labels) - example.labels.count(IGNORE)
                if system not in self._prefixes and len(self._prefixes) < SYSTEMS:
                    self._prefixes[system] = _Prefix(example.input_ids[: example.prompt_length])
                if system in self._prefixes:
                    self._prefixes[system].see(example)
        left = self.keep - len(self.first)
        self.first += [example for _, examples in part[:left] for example in examples][:left]

    def _see_roles(self, rows: list[Fitted]) -> None:
        """By encoding each turn's text alone: special tokens stand on both sides of it, so the sum comes out even."""
        texts = [text for row, _ in rows for _, text in _written(row)]
        if not texts:
            return
        ids = iter(self.renderer.tokenizer(texts, add_special_tokens=False)["input_ids"])
        for row, examples in rows:
            whole = max(len(example.input_ids) for example in examples)
            for role, _ in _written(row):
                tokens = len(next(ids))
                self._roles[role] += tokens
                whole -= tokens
            self._roles["template"] += max(0, whole)
            self._role_rows += 1

    def facts(self) -> TokenFacts:
        most = max(self._prefixes.values(), key=lambda prefix: prefix.rows)
        repeated = sum((prefix.rows - 1) * len(prefix.ids) for prefix in self._prefixes.values())
        return TokenFacts(
            lengths_of(self._sizes, self._labelled),
            dict(self._roles.most_common()),
            self._role_rows,
            SharedPrefix(len(most.ids), most.rows, repeated),
        )


def _written(row: Conversation) -> Iterator[tuple[str, str]]:
    for message in row.messages:
        yield message.role, message.content
        if message.reasoning:
            yield "thinking", message.reasoning


def too_long(ledger: Ledger, max_length: int, context_length: int | None) -> Iterator[Finding]:
    """Rows that are left out or cut, as they have more than `max_length` tokens."""
    entries = [(entry, entry.too_long) for entry in ledger.entries if entry.too_long is not None]
    if not entries:
        return
    cut = sum(entry.cut for entry, _ in entries)
    longest = max(tokens for _, tokens in entries)
    outcomes = [(len(entries) - cut, "left out"), (cut, "cut")]
    todo = "shorten them, or let data.too_long: cut_prompt shorten their questions"
    if context_length is None or longest <= context_length:
        todo = f"data.max_length: {longest} takes them all, for more memory; or {todo}"
    elif max_length < context_length:
        todo = f"data.max_length can be {context_length} with this model, for more memory; or {todo}"
    yield Finding(
        "too_long",
        "problem",
        len(entries),
        f"rows longer than {max_length:,} tokens: "
        + " and ".join(f"{count:,} {outcome}" for count, outcome in outcomes if count),
        todo,
        tuple(_place(entry, tokens) for entry, tokens in entries[:PLACES]),
    )


def _place(entry: Entry, tokens: int) -> Place:
    return Place(str(entry.source), f"{tokens:,} tokens" + (", cut" if entry.cut else ""))
