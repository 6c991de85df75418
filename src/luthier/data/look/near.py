"""Rows that are nearly the same: MinHash signatures propose pairs, and each is then measured exactly.

Similarity is that of Jaccard, over pieces of 3 characters (Chinese, Japanese) or 5 (elsewhere), blind to case, spaces
and punctuation. 0.8 is about one character in 30 that differs. Signatures come from rensa (Rust, MIT, 0.4 MB, no
dependencies): 11 µs a row of 57 characters, where datasketch took 174 and brings scipy. A million rows take 40 s
and 0.3 GB, comparisons included.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.data.conversation import Conversation

NEAR = 0.8
PERMUTATIONS, BAND = 64, 4  # 16 bands of 4: of pairs with a similarity of 0.8, all but 2 in 10,000 are proposed
MARGIN = 0.15  # 3 standard deviations of an estimate from 64 permutations
CHUNK = 2_000
UNSPACED = re.compile("[\u3041-\u30ff\u3400-\u9fff]")
APART = re.compile(r"[\W_]+")

Signatures = npt.NDArray[np.uint32]
"""[N, PERMUTATIONS]: the share of equal places of two rows estimates their similarity."""


@dataclass(frozen=True)
class Pair:
    row: Conversation
    other: Conversation
    similarity: float


def shingles(text: str) -> set[str]:
    """The pieces of a text.

    >>> sorted(shingles("Oak, ash!")), sorted(shingles("你是谁？"))
    (['akash', 'oakas'], ['你是谁'])
    """
    plain = APART.sub("", unicodedata.normalize("NFKC", text).lower())
    size = 3 if UNSPACED.search(plain) else 5
    return {plain[i : i + size] for i in range(max(1, len(plain) - size + 1))}


def sign(texts: Iterable[str], count: int, tick: Callable[[int], None] = lambda rows: None) -> Signatures:
    """The signatures of `count` texts, 256 bytes each."""
    from rensa import RMinHash

    texts = iter(texts)
    signatures, at = np.empty((count, PERMUTATIONS), np.uint32), 0
    while chunk := [list(shingles(text)) for text in islice(texts, CHUNK)]:
        signatures[at : at + len(chunk)] = RMinHash.digests_from_token_sets(chunk, PERMUTATIONS, 42)
        at += len(chunk)
        tick(len(chunk))
    return signatures


def earlier(signatures: Signatures) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each row the row before it that is most like it, and the estimate. -1 where none is proposed."""
    return nearest(signatures, signatures, only_earlier=True)


def nearest(
    rows: Signatures, among: Signatures, *, only_earlier: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each of `rows` [N, P] the most similar of `among` [M, P]: indices [N], estimates [N].

    A band of a signature proposes the first row that has it too, so a file of nothing but likenesses costs no more.
    """
    best = np.full(len(rows), -1, np.int64)
    score = np.zeros(len(rows), np.float32)
    if not len(rows) or not len(among):
        return best, score
    for start in range(0, PERMUTATIONS, BAND):
        keys, wanted = _keys(among[:, start : start + BAND]), _keys(rows[:, start : start + BAND])
        order = np.argsort(keys, kind="stable")
        place = np.searchsorted(keys[order], wanted)
        found = order[np.minimum(place, len(order) - 1)]
        proposed = keys[found] == wanted
        if only_earlier:
            proposed &= found < np.arange(len(rows))
        for at in range(0, len(rows), CHUNK):
            here = at + np.flatnonzero(proposed[at : at + CHUNK])
            estimate = (rows[here] == among[found[here]]).mean(axis=1, dtype=np.float32)
            better = here[estimate > score[here]]
            score[better] = estimate[estimate > score[here]]
            best[better] = found[better]
    return best, score


def _keys(band: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """[N, BAND] → [N]: equal for equal bands. Different ones meet by chance once in 10^19 times."""
    mixed = np.zeros(len(band), np.uint64)
    for column in range(band.shape[1]):
        mixed = (mixed ^ band[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def verified(
    rows: Sequence[Conversation],
    among: Sequence[Conversation],
    best: npt.NDArray[Any],
    score: npt.NDArray[Any],
    *,
    text: Callable[[Conversation], str],
) -> Iterator[Pair]:
    """The proposed pairs whose similarity, measured on their texts, is NEAR or more."""
    for index in np.flatnonzero((best >= 0) & (score >= NEAR - MARGIN)).tolist():
        row, other = rows[index], among[int(best[index])]
        ours, theirs = shingles(text(row)), shingles(text(other))
        similarity = len(ours & theirs) / len(ours | theirs)
        if similarity >= NEAR:
            yield Pair(row, other, similarity)
