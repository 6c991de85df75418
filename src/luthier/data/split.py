"""Rows that repeat, prompts that contradict, and rows held out for the loss that tells the truth."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from luthier.data.conversation import Conversation, Source
from luthier.data.ledger import Conflict
from luthier.data.store import Digests, Indices, Part, first_of
from luthier.errors import Problem, RecipeError

Digest = bytes


@dataclass(frozen=True)
class Duplicates:
    """`unique`: the first of each. `repeated`: every later one, and `repeats`: its place with that of its first.

    `conflicts`: prompts (all that precedes the last answer) that have more than one different last answer.
    """

    unique: Sequence[Conversation]
    repeated: Sequence[Conversation]
    repeats: list[tuple[Source, Source]]
    conflicts: list[Conflict]


def find_duplicates(conversations: Sequence[Conversation]) -> Duplicates:
    """Exact repetitions (every message equal, in text, role and training) and conflicting answers. Order is kept."""
    rows, prompts, answers = Digests(), Digests(), Digests()
    for conversation in conversations:
        *_, last = _prompts(conversation)
        answer = conversation.messages[-1]
        rows.append(digest_of(conversation))
        prompts.append(last)
        answers.append(_digest(last.hex(), answer.content, answer.reasoning))
    first = first_of(rows.array())
    index = np.arange(len(first))
    unique, later = np.flatnonzero(first == index), np.flatnonzero(first != index)
    prompt, answer_of = first_of(prompts.array()[unique]), first_of(answers.array()[unique])
    different = np.bincount(prompt[answer_of == np.arange(len(unique))], minlength=len(unique))
    told = np.flatnonzero(different[prompt] > 1)  # rows of prompts with several answers

    places: dict[int, Source] = {}
    wanted = np.unique(np.concatenate((later, first[later], unique[told])))
    firsts = {int(unique[at]): "" for at in np.flatnonzero(different > 1)}
    for at, row in zip(wanted.tolist(), Part(conversations, wanted), strict=True):
        places[at] = row.source
        if at in firsts:
            firsts[at] = row.prompt[-1].content
    same: dict[int, list[Source]] = {}
    for at in told.tolist():
        same.setdefault(int(prompt[at]), []).append(places[int(unique[at])])
    return Duplicates(
        Part(conversations, unique),
        Part(conversations, later),
        [(places[at], places[int(first[at])]) for at in later.tolist()],
        [Conflict(firsts[int(unique[at])], int(different[at]), tuple(found)) for at, found in same.items()],
    )


def digest_of(conversation: Conversation) -> Digest:
    """The same for rows whose every message is the same."""
    return _digest(*(part for m in conversation.messages for part in (m.role, m.content, m.train, m.reasoning)))


def _digest(*parts: str | bool | None) -> Digest:
    running = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = repr(part) if not isinstance(part, str) else part
        data = text.encode()
        running.update(f"{type(part).__name__} {len(data)} ".encode() + data)
    return running.digest()


def split(
    conversations: Sequence[Conversation], holdout: str | int, seed: int
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """(train, heldout), each in the given order. Rows with a common prompt stay on one side.

    A conversation has a prompt before each of its answers; sharing any of them binds two rows together. Which
    rows are held out depends on `seed` and their text, not on their order, so a file with rows added to it
    holds out nearly the same ones. The number held out is as near to what was asked as whole groups allow.

    Raises RecipeError when `holdout` cannot be read or leaves nothing to train on.
    """
    wanted = holdout_count(holdout, len(conversations))
    if wanted == 0:
        return conversations, []
    groups, keys = _groups(conversations)
    sizes = np.bincount(groups, minlength=len(keys))
    if np.count_nonzero(sizes) == 1:
        fix = "set data.holdout: 0, or give a file of other rows as data.heldout"
        raise RecipeError(Problem("data.holdout", "every row has the same prompt, so none can be held out", fix))
    held = _nearest(keys, sizes, wanted, seed)[groups]
    return Part(conversations, np.flatnonzero(~held)), Part(conversations, np.flatnonzero(held))


def unseen(
    heldout: Sequence[Conversation], train: Sequence[Conversation]
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """(unseen, seen): rows of a held-out file none of whose prompts, in any turn, is in training, and the others."""
    digests, row_of = Digests(), array("q")
    for rows, is_heldout in ((train, False), (heldout, True)):
        for index, conversation in enumerate(rows):
            for digest in _prompts(conversation):
                digests.append(digest)
                row_of.append(index if is_heldout else -1)
    owner = np.frombuffer(row_of, np.int64) if row_of else np.empty(0, np.int64)
    trained = owner[first_of(digests.array())] < 0
    seen = np.zeros(len(heldout), np.bool_)
    seen[owner[trained & (owner >= 0)]] = True
    return Part(heldout, np.flatnonzero(~seen)), Part(heldout, np.flatnonzero(seen))


def holdout_count(holdout: str | int, rows: int) -> int:
    """`"5%"` or `200` as a number of rows: at least one if any was asked for. Raises RecipeError."""
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", str(holdout))
    if share:
        asked = float(share[1]) * rows / 100
    elif isinstance(holdout, int) and holdout >= 0:
        asked = holdout
    else:
        fix = 'write a share as "5%", a count as 200, or 0 for none'
        raise RecipeError(Problem("data.holdout", f"{holdout!r} is neither a share nor a count of rows", fix))
    count = max(1, round(asked)) if asked else 0
    if count and count >= rows:
        what = f"{holdout} of {rows:,} rows leaves nothing to train on"
        raise RecipeError(Problem("data.holdout", what, "ask for fewer, set data.holdout: 0, or add rows"))
    return count


def _groups(conversations: Sequence[Conversation]) -> tuple[Indices, npt.NDArray[np.uint64]]:
    """For each row its group: rows bound together by common prompts. And the digests [G, 2] that name the groups.

    A group is named by the smallest digest among its prompts, and numbered by that digest's place in their order.
    """
    digests, counts = Digests(), array("q")
    for conversation in conversations:
        before = len(digests)
        for digest in _prompts(conversation):
            digests.append(digest)
        counts.append(len(digests) - before)
    found = digests.array()
    first = first_of(found)
    distinct = np.flatnonzero(first == np.arange(len(first)))
    order = distinct[np.lexsort((found[distinct, 1], found[distinct, 0]))]
    rank = np.empty(len(found), np.int64)
    rank[order] = np.arange(len(order))
    rank = rank[first]
    parent = np.arange(len(order))

    def root(prompt: int) -> int:
        while (above := int(parent[prompt])) != prompt:
            parent[prompt] = parent[above]
            prompt = above
        return prompt

    per_row = np.frombuffer(counts, np.int64)
    starts = np.cumsum(per_row) - per_row
    for row in np.flatnonzero(per_row > 1).tolist():
        one, *others = rank[starts[row] : starts[row] + per_row[row]].tolist()
        for other in others:
            a, b = sorted((root(one), root(other)))
            parent[b] = a
    while (parent[parent] != parent).any():
        parent = parent[parent]
    return parent[rank[starts]], found[order]


def _nearest(
    keys: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64], wanted: int, seed: int
) -> npt.NDArray[np.bool_]:
    """Whole groups in an order drawn from `seed`, each taken if it fits; one more if overshooting ends nearer."""
    key = str(seed).encode()[:64]
    groups = np.flatnonzero(sizes)
    draws = Digests()
    for name in keys[groups].astype(">u8"):
        draws.append(hashlib.blake2b(name.tobytes(), key=key, digest_size=16).digest())
    drawn = draws.array()
    held, missing = np.zeros(len(sizes), np.bool_), wanted
    left: list[tuple[int, int]] = []  # size and group of the smallest that was not taken
    more = 0
    for group in groups[np.lexsort((drawn[:, 1], drawn[:, 0]))].tolist():
        size = int(sizes[group])
        if size <= missing:
            held[group] = True
            missing -= size
        else:
            more += 1
            left = left if left and left[0][0] <= size else [(size, group)]
    size, group = left[0]
    if more > 1 and (size - missing < missing or not held.any()):
        held[group] = True
    return held


def _prompts(conversation: Conversation) -> Iterator[Digest]:
    """A digest of all that precedes each answer (of the whole, for a plain text). Only roles and texts count."""
    running = hashlib.blake2b(digest_size=16)
    for message in conversation.messages:
        if message.role == "assistant":
            yield running.digest()
        text = message.content.encode()
        running.update(f"{message.role} {len(text)} ".encode() + text)
    if all(message.role != "assistant" for message in conversation.messages):
        yield running.digest()
