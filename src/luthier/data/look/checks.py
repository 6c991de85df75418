"""All that is looked for. A new finding is one function from the rows to what it found, and its name in this list."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from luthier import console
from luthier.data.conversation import Conversation
from luthier.data.look import answers, private, repeats, scripts
from luthier.data.look.finding import PLACES, WEIGHTS, Finding, Place, counted, excerpt, rows_of
from luthier.data.prepare import Gathered

Check = Callable[[Gathered], Iterable[Finding]]


def bad_rows(data: Gathered) -> Iterator[Finding]:
    if data.dropped:
        yield Finding(
            "bad_rows",
            "problem",
            len(data.dropped),
            "rows that cannot be used",
            "correct them; until then they are left out",
            tuple(Place(str(source), excerpt(why)) for source, why in data.dropped[:PLACES]),
            "left out",
        )


def secrets(data: Gathered) -> Iterator[Finding]:
    yield from _private(
        data,
        private.SECRETS,
        "secrets",
        "with what looks like a key, token or password",
        "revoke those that are real, and take them out: a model recites what it was trained on",
    )


def contacts(data: Gathered) -> Iterator[Finding]:
    yield from _private(
        data,
        private.CONTACTS,
        "contacts",
        "with what looks like an e-mail address or a number of a person",
        "take them out, unless they are public: a model recites what it was trained on",
    )


def _private(
    data: Gathered, patterns: tuple[private.Pattern, ...], name: str, what: str, todo: str
) -> Iterator[Finding]:
    count, places = counted(_hits(data, patterns))
    if count:
        yield Finding(name, "problem", count, f"rows {what}", todo, places, "masked")


def _hits(data: Gathered, patterns: tuple[private.Pattern, ...]) -> Iterator[tuple[Conversation, str]]:
    """Each row that has one, with the first of them."""
    for row in rows_of(data):
        for message in row.messages:
            text = message.content
            hits = private.hits(text, patterns)
            if hits:
                yield row, f"{hits[0].kind}: {text[hits[0].start : hits[0].end]}"
                break


CHECKS: tuple[Check, ...] = (
    bad_rows,
    secrets,
    contacts,
    answers.empty,
    answers.damaged,
    repeats.conflicts,
    repeats.near_duplicates,
    answers.boilerplate,
    answers.echoes,
    scripts.other_script,
    repeats.seen,
    repeats.duplicates,
    answers.repeated_answers,
)


MANY = 100_000  # rows from which on each check shows how far it is


def run(data: Gathered, wanted: Iterable[Check] = CHECKS) -> list[Finding]:
    """What was found, the gravest first."""
    found: list[Finding] = []
    for check in wanted:
        with watched(data, f"Looking for {check.__name__.replace('_', ' ')}") as rows:
            found += check(rows)
    return in_order(found)


@contextlib.contextmanager
def watched(data: Gathered, description: str) -> Iterator[Gathered]:
    """The same rows, with a bar of those gone through where they are many."""
    rows = len(data.train) + len(data.heldout)
    if rows < MANY:
        yield data
        return
    with console.progress(description, rows) as bar:
        yield replace(data, tick=bar.advance)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: WEIGHTS.index(finding.weight))
