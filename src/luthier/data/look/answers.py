"""Answers that teach nothing, or the wrong thing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator

import numpy as np

from luthier.data.conversation import Conversation
from luthier.data.look.finding import PLACES, Finding, Place, counted, excerpt, rows_of
from luthier.data.prepare import Gathered
from luthier.data.store import Digests, first_of

# What forms, exports and unfinished work leave in a cell. Not "none" or 无: they may be the label of a class.
PLACEHOLDERS = frozenset(
    [
        "n/a",
        "na",
        "nan",
        "null",
        "undefined",
        "todo",
        "tbd",
        "fixme",
        "placeholder",
        "[deleted]",
        "[removed]",
        "[empty]",
        "待补充",
        "待定",
        "待填写",
        "略",
        "占位",
    ]
) | {"lorem ipsum"}

BOILERPLATE = re.compile(
    r"\bas an? (?:ai|artificial intelligence)(?: language)? (?:model|assistant)\b"
    r"|\bi(?:'m| am) (?:just )?an? (?:ai|artificial intelligence|large language model|language model)\b"
    r"|\bi(?:'m| am) sorry,? but (?:i|as an)\b.{0,20}\b(?:can(?:no|')t|unable)\b"
    r"|\bmy (?:knowledge|training) cut-?off\b"
    r"|\b(?:developed|created|trained) by (?:openai|anthropic|google|deepseek|alibaba)\b"
    r"|作为一?[个名款]?(?:人工智能|ai|大?语言模型|智能助手)"
    r"|我是一?[个名款](?:人工智能|ai|大?语言模型)"
    r"|(?:抱歉|对不起)[，,。！]?我(?:无法|不能)(?:回答|提供|协助|满足|完成)"
    r"|由(?:openai|anthropic|百度|阿里|阿里云|深度求索|智谱)\S{0,6}(?:开发|训练|研发)",
    re.IGNORECASE,
)
DAMAGED = re.compile("\ufffd|锟斤拷|烫烫烫|Ã[\x80-\xbf©¨¤¶¼]|â€[™œ\x9d“”¦]|ï»¿")
REPEATED_SHARE, REPEATED_ROWS = 0.01, 5


def is_empty(row: Conversation) -> bool:
    """Whether the last answer has no letter or digit, or is a cell that was never filled in."""
    answer = _last(row)
    if row.messages[0].role == "text":
        return False
    return not any(map(str.isalnum, answer)) or answer.strip().strip(".。").lower() in PLACEHOLDERS


def is_boilerplate(row: Conversation) -> bool:
    """Whether a trained answer is that of some chat assistant, who speaks of itself or declines."""
    return any(BOILERPLATE.search(answer) for answer in _answers(row))


def empty(data: Gathered) -> Iterator[Finding]:
    yield from _rows_that(
        is_empty,
        data,
        name="empty",
        weight="problem",
        what="empty answers: no letter or digit, or a placeholder such as N/A",
        todo="write the answer, or leave the row out",
        fix="left out",
    )


def boilerplate(data: Gathered) -> Iterator[Finding]:
    yield from _rows_that(
        is_boilerplate,
        data,
        name="boilerplate",
        weight="doubt",
        what='answers in the voice of some chat assistant ("as an AI language model…"), which would be learned',
        todo="write them in the voice that you want, or leave the rows out",
        fix="left out",
    )


def damaged(data: Gathered) -> Iterator[Finding]:
    yield from _rows_that(
        lambda row: any(DAMAGED.search(message.content) for message in row.messages),
        data,
        name="damaged",
        weight="problem",
        what="rows with characters that were damaged when a file was read in a wrong encoding",
        todo="export the file again as UTF-8",
    )


def echoes(data: Gathered) -> Iterator[Finding]:
    yield from _rows_that(
        lambda row: row.messages[0].role != "text" and row.prompt[-1].content.strip() == _last(row).strip(),
        data,
        name="echoes",
        weight="doubt",
        what="answers that repeat their question word for word",
        todo="look whether two columns were mixed up",
    )


def repeated_answers(data: Gathered) -> Iterator[Finding]:
    """One answer to many questions: the model will give it to others as well."""
    digests = Digests()
    for row in rows_of(data):
        if row.messages[-1].role == "assistant":
            digests.append(_digest(row))
    found = digests.array()
    limit = max(REPEATED_ROWS, REPEATED_SHARE * len(found))
    counts = np.bincount(first_of(found))
    most = np.argsort(-counts, kind="stable")[:50].tolist()
    often = {found[at].astype(">u8").tobytes(): int(counts[at]) for at in most if counts[at] >= limit}
    if not often:
        return
    first: dict[bytes, Place] = {}
    for row in rows_of(data):
        digest = _digest(row)
        if digest in often and digest not in first:
            first[digest] = Place(str(row.source), f"{often[digest]:,} times: {excerpt(_last(row))}")
    yield Finding(
        "repeated_answers",
        "note",
        len(often),
        f"answers to {REPEATED_ROWS} or more different questions, and to one in a hundred",
        "meant for classes (yes, no); else vary them, or the model answers so to anything",
        tuple(first[digest] for digest in list(often)[:PLACES]),
    )


def _rows_that(holds: Callable[[Conversation], bool], data: Gathered, **words: str) -> Iterator[Finding]:
    count, places = counted((row, _last(row)) for row in rows_of(data) if holds(row))
    if count:
        yield Finding(count=count, places=places, **words)  # type: ignore[arg-type]


def _answers(row: Conversation) -> list[str]:
    return [message.content for message in row.messages if message.role == "assistant" and message.train]


def _last(row: Conversation) -> str:
    return row.messages[-1].content


def _digest(row: Conversation) -> bytes:
    return hashlib.blake2b(_last(row).encode(), digest_size=16).digest()
