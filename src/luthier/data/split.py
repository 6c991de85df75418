"""Rows that repeat, prompts that contradict, and rows held out for the loss that tells the truth."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from luthier.data.conversation import Conversation, Message, Source
from luthier.data.ledger import Conflict
from luthier.errors import Problem, RecipeError

Digest = bytes


@dataclass(frozen=True)
class Duplicates:
    """`unique`: the first of each. `repeats`: every later one, with the place of its first.

    `conflicts`: prompts (all that precedes the last answer) that have more than one different last answer.
    """

    unique: list[Conversation]
    repeats: list[tuple[Conversation, Source]]
    conflicts: list[Conflict]


def find_duplicates(conversations: Iterable[Conversation]) -> Duplicates:
    """Exact repetitions (every message equal, in text, role and training) and conflicting answers. Order is kept."""
    first: dict[tuple[Message, ...], Conversation] = {}
    repeats: list[tuple[Conversation, Source]] = []
    for conversation in conversations:
        earlier = first.setdefault(conversation.messages, conversation)
        if earlier is not conversation:
            repeats.append((conversation, earlier.source))
    unique = list(first.values())
    return Duplicates(unique, repeats, list(_conflicts(unique)))


def _conflicts(unique: list[Conversation]) -> Iterator[Conflict]:
    by_prompt: dict[Digest, list[Conversation]] = {}
    for conversation in unique:
        *_, last = _prompts(conversation)
        by_prompt.setdefault(last, []).append(conversation)
    for same in by_prompt.values():
        answers = {(c.messages[-1].content, c.messages[-1].reasoning) for c in same}
        if len(answers) > 1:
            yield Conflict(same[0].prompt[-1].content, len(answers), tuple(c.source for c in same))


def split(
    conversations: Sequence[Conversation], holdout: str | int, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(train, heldout), each in the given order. Rows with a common prompt stay on one side.

    A conversation has a prompt before each of its answers; sharing any of them binds two rows together. Which
    rows are held out depends on `seed` and their text, not on their order, so a file with rows added to it
    holds out nearly the same ones. The number held out is as near to what was asked as whole groups allow.

    Raises RecipeError when `holdout` cannot be read or leaves nothing to train on.
    """
    wanted = holdout_count(holdout, len(conversations))
    if wanted == 0:
        return list(conversations), []
    groups = _groups(conversations)
    if len(groups) == 1:
        fix = "set data.holdout: 0, or give a file of other rows as data.heldout"
        raise RecipeError(Problem("data.holdout", "every row has the same prompt, so none can be held out", fix))
    held = _nearest([(key, len(members)) for key, members in groups.items()], wanted, seed)
    heldout = {index for key in held for index in groups[key]}
    sides: tuple[list[Conversation], list[Conversation]] = ([], [])
    for index, conversation in enumerate(conversations):
        sides[index in heldout].append(conversation)
    return sides


def unseen(
    heldout: Sequence[Conversation], train: Iterable[Conversation]
) -> tuple[list[Conversation], list[Conversation]]:
    """(unseen, seen): rows of a held-out file none of whose prompts, in any turn, is in training, and the others."""
    trained = {digest for conversation in train for digest in _prompts(conversation)}
    sides: tuple[list[Conversation], list[Conversation]] = ([], [])
    for conversation in heldout:
        sides[any(digest in trained for digest in _prompts(conversation))].append(conversation)
    return sides


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


def _groups(conversations: Sequence[Conversation]) -> dict[Digest, list[int]]:
    """Indices of rows bound together by common prompts, under the smallest digest among their prompts."""
    parent: dict[Digest, Digest] = {}

    def root(digest: Digest) -> Digest:
        while (above := parent.setdefault(digest, digest)) != digest:
            parent[digest] = parent[above]
            digest = above
        return digest

    last: list[Digest] = []
    for conversation in conversations:
        prompts = list(_prompts(conversation))
        for digest in prompts[1:]:
            a, b = sorted((root(prompts[0]), root(digest)))
            parent[b] = a
        last.append(prompts[0])
    groups: dict[Digest, list[int]] = {}
    for index, digest in enumerate(last):
        groups.setdefault(root(digest), []).append(index)
    return groups


def _nearest(groups: list[tuple[Digest, int]], wanted: int, seed: int) -> list[Digest]:
    """Whole groups in an order drawn from `seed`, each taken if it fits; one more if overshooting ends nearer."""
    key = str(seed).encode()[:64]
    drawn = sorted(groups, key=lambda group: hashlib.blake2b(group[0], key=key, digest_size=16).digest())
    held, missing = [], wanted
    for digest, size in drawn:
        if size <= missing:
            held.append(digest)
            missing -= size
    chosen = set(held)
    left = [(digest, size) for digest, size in drawn if digest not in chosen]
    digest, size = min(left, key=lambda group: group[1])
    if len(left) > 1 and (size - missing < missing or not held):
        held.append(digest)
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
