"""What a look at data may find, and how the data's own text is shown: one line, no secret, no control characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any, Literal

from luthier.data.conversation import Conversation
from luthier.data.look import private
from luthier.data.prepare import Gathered
from luthier.data.preview import printable

Weight = Literal["problem", "doubt", "note"]
"""problem: training on it does harm. doubt: a person should look. note: good to know, or dealt with already."""

WEIGHTS: tuple[Weight, ...] = ("problem", "doubt", "note")
PLACES = 3
TICK = 1000


@dataclass(frozen=True)
class Place:
    """An example: where it stands, and an excerpt."""

    where: str
    text: str


@dataclass(frozen=True)
class Finding:
    """One kind of thing, found `count` times. `what` begins with what is counted: rows, answers, prompts.

    `todo` is what to do next. `fix` is what `--fix` does about it, "" if it needs a person.
    """

    name: str
    weight: Weight
    count: int
    what: str
    todo: str
    places: tuple[Place, ...] = ()
    fix: str = ""

    @property
    def title(self) -> str:
        """`what` as a heading, which reads well beside any count."""
        return self.what[0].upper() + self.what[1:]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "places": [asdict(place) for place in self.places]}


def rows_of(data: Gathered) -> Iterator[Conversation]:
    """Every row that would be trained or held out."""
    rows = chain(data.train, data.heldout)
    while some := list(islice(rows, TICK)):
        yield from some
        data.tick(len(some))


def excerpt(text: str, most: int = 60) -> str:
    """`Write to zhen…\\nnow` → `Write to zhe… now`: masked, on one line, at most `most` characters and a sign."""
    line = " ".join(private.masked(text).split())
    line = line if len(line) <= most else f"{line[:most]}…"
    return printable(line)


def counted(found: Iterable[tuple[Conversation, str]]) -> tuple[int, tuple[Place, ...]]:
    """How many there are, and the first few with their texts as excerpts."""
    found = iter(found)
    first = tuple(Place(str(row.source), excerpt(text)) for row, text in islice(found, PLACES))
    return len(first) + sum(1 for _ in found), first
