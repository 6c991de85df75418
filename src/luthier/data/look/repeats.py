"""Rows that repeat, contradict each other, or stand on both sides of the split: exactly, or nearly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from luthier.data.conversation import Conversation
from luthier.data.look import near
from luthier.data.look.finding import PLACES, Finding, Place, Weight, counted, excerpt
from luthier.data.prepare import Gathered
from luthier.data.store import Part


def duplicates(data: Gathered) -> Iterator[Finding]:
    repeats = data.duplicates.repeats
    if repeats:
        places = tuple(
            Place(str(row.source), f"as {first.unit} {first.number}: {excerpt(_text(row))}")
            for row, (_, first) in zip(data.duplicates.repeated[:PLACES], repeats[:PLACES], strict=True)
        )
        yield Finding(
            "duplicates",
            "note",
            len(repeats),
            "rows that repeat an earlier row exactly",
            "nothing: training leaves them out, unless data.duplicates: keep",
            places,
            "left out",
        )


def conflicts(data: Gathered) -> Iterator[Finding]:
    """Counted in prompts. All answers are kept: which one is meant, no program can know."""
    found = data.duplicates.conflicts
    if found:
        places = tuple(
            Place(
                "; ".join(map(str, conflict.sources[:PLACES])),
                f"{conflict.answers} answers: {excerpt(conflict.prompt)}",
            )
            for conflict in found[:PLACES]
        )
        yield Finding(
            "conflicts",
            "doubt",
            len(found),
            "prompts with several different answers",
            "keep the best answer of each; where all are good, the model learns to vary",
            places,
        )


def near_duplicates(data: Gathered) -> Iterator[Finding]:
    """Rows to train that nearly repeat an earlier one, and rows held out that nearly repeat one that is trained."""
    repeated = {source for source, _ in data.duplicates.repeats}
    train: Sequence[Conversation] = data.train
    if repeated:
        train = Part(train, np.array([at for at, row in enumerate(train) if row.source not in repeated], np.int64))
    signatures = near.sign(map(_text, train), len(train), data.tick)
    pairs = near.verified(train, train, *near.earlier(signatures), text=_text)
    yield from _found_in(
        pairs,
        name="near_duplicates",
        weight="doubt",
        what=f"rows that nearly repeat an earlier row ({near.NEAR:.0%} or more is the same)",
        todo="keep one of each: what stands there twice is learned by heart first",
    )
    best = near.nearest(near.sign(map(_text, data.heldout), len(data.heldout), data.tick), signatures)
    yield from _found_in(
        near.verified(data.heldout, train, *best, text=_text),
        name="overlap",
        weight="problem",
        what=f"held-out rows (of {len(data.heldout):,}) that nearly repeat a trained row: the held-out loss flatters",
        todo="delete one of each pair, or hold out a file of other rows (data.heldout)",
    )


def _found_in(pairs: Iterator[near.Pair], *, name: str, weight: Weight, what: str, todo: str) -> Iterator[Finding]:
    first = list(islice(pairs, PLACES))
    count = len(first) + sum(1 for _ in pairs)  # of a million pairs only the number is kept
    if count:
        yield Finding(name, weight, count, what, todo, tuple(map(_place, first)))


def seen(data: Gathered) -> Iterator[Finding]:
    """Rows of a held-out file whose prompt is also trained. (Where rows are split off, the split sees to it.)"""
    if data.seen:
        yield Finding(
            "seen",
            "note",
            len(data.seen),
            "rows of the held-out file with a prompt that is also in training",
            "nothing: they are left out, so that the held-out loss stays true",
            counted((row, row.prompt[-1].content if row.prompt else _text(row)) for row in data.seen)[1],
        )


def _place(pair: near.Pair) -> Place:
    ours, theirs = (excerpt(_text(row), 40) for row in (pair.row, pair.other))
    return Place(f"{pair.row.source}; {pair.other.source}", f"{pair.similarity:.0%}: {ours} | {theirs}")


def _text(row: Conversation) -> str:
    """What the row says; not its system prompt, which many share."""
    return "\n".join(message.content for message in row.messages if message.role != "system")
