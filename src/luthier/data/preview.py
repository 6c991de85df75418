"""What the model will see: rows as tokens, marked where they are trained, and how long they are.

`look/page.py` shows the same pieces on a page.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from luthier import console
from luthier.data.conversation import Source
from luthier.data.look import private
from luthier.data.render import IGNORE

if TYPE_CHECKING:
    from rich.text import Text

BINS = 12
BYTES_OF_A_CHARACTER = 4
TOKENS_SHOWN = 400


class Tokens(Protocol):
    """The part of an Example that is shown."""

    @property
    def input_ids(self) -> list[int]: ...
    @property
    def labels(self) -> list[int]: ...
    @property
    def source(self) -> Source: ...
    @property
    def cut(self) -> bool: ...


class Tokenizer(Protocol):
    def decode(self, token_ids: list[int], **options: Any) -> Any: ...
    def convert_ids_to_tokens(self, ids: list[int]) -> Any: ...


# ---------------------------------------------------------------- lengths


@dataclass(frozen=True)
class Lengths:
    """In tokens. A percentile is the length of a real row (nearest rank); a bin holds `start <= length < end`."""

    rows: int
    tokens: int
    labelled: int
    percentiles: dict[str, int]
    histogram: list[tuple[int, int, int]]

    @property
    def labelled_share(self) -> float:
        return self.labelled / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """`data.lengths` of run.json."""
        histogram = [list(bin) for bin in self.histogram]
        return {"tokens": self.percentiles, "total": self.tokens, "labelled": self.labelled, "histogram": histogram}


def measure(examples: Sequence[Tokens]) -> Lengths:
    """Lengths and labelled tokens of at least one example."""
    sizes = [len(example.input_ids) for example in examples]
    return lengths_of(sizes, sum(len(example.labels) - example.labels.count(IGNORE) for example in examples))


def lengths_of(sizes: Sequence[int], labelled: int) -> Lengths:
    """The same from at least one length, and how many tokens of all are trained."""
    ordered = sorted(sizes)
    percentiles = {f"p{p}": ordered[-(-len(ordered) * p // 100) - 1] for p in (50, 90, 95, 99)}
    return Lengths(
        rows=len(ordered),
        tokens=sum(ordered),
        labelled=labelled,
        percentiles={**percentiles, "max": ordered[-1]},
        histogram=_histogram(ordered),
    )


def _histogram(sizes: list[int]) -> list[tuple[int, int, int]]:
    """At most BINS bins of one width. Sizes 3, 3, 14 → (3, 4, 2), …, (14, 15, 1)."""
    first, last = sizes[0], sizes[-1]
    width = -(-(last - first + 1) // BINS)
    counts = [0] * ((last - first) // width + 1)
    for size in sizes:
        counts[(size - first) // width] += 1
    return [(first + i * width, first + (i + 1) * width, count) for i, count in enumerate(counts)]


# ---------------------------------------------------------------- tokens as text


@dataclass(frozen=True)
class Piece:
    """One token; or several that are bytes of one character, which none of them shows alone."""

    ids: list[int]
    names: list[str]
    text: str
    trained: bool


def pieces(example: Tokens, tokenizer: Tokenizer) -> list[Piece]:
    """All tokens of an example, in order."""
    names = tokenizer.convert_ids_to_tokens(example.input_ids)
    found = []
    start = 0
    while start < len(example.input_ids):
        trained = example.labels[start] != IGNORE
        end, text = _character_end(example, start, tokenizer)
        if names[start].startswith("▁") and not text.startswith(" "):  # SentencePiece drops a leading space
            text = " " + text
        found.append(Piece(example.input_ids[start:end], names[start:end], text, trained))
        start = end
    return _blotted(found)


def _blotted(found: list[Piece]) -> list[Piece]:
    """Keys, addresses and numbers as dots: a page of rows is sent to others."""
    hits = private.hits("".join(piece.text for piece in found))
    blotted, start = [], 0
    for piece in found:
        end = start + len(piece.text)
        text = (
            "".join(
                "•" if any(hit.start <= at < hit.end for hit in hits) else character
                for at, character in enumerate(piece.text, start)
            )
            if any(hit.start < end and start < hit.end for hit in hits)
            else piece.text
        )
        blotted.append(piece if text == piece.text else Piece([], [], text, piece.trained))
        start = end
    return blotted


def _character_end(example: Tokens, start: int, tokenizer: Tokenizer) -> tuple[int, str]:
    """Where the token at `start` ends, or the character of which it is a part, and the text up to there."""
    trained = example.labels[start] != IGNORE
    single = _decode(tokenizer, example.input_ids[start : start + 1])
    end, text = start + 1, single
    while "\ufffd" in text:
        if end == len(example.labels) or end - start == BYTES_OF_A_CHARACTER:
            return start + 1, single
        if (example.labels[end] != IGNORE) != trained:
            return start + 1, single
        end += 1
        text = _decode(tokenizer, example.input_ids[start:end])
    return end, text


def _decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def visible(text: str) -> str:
    """Whitespace as signs, control characters as their codes: `a b` → `a·b`, a line end → `↵` and a line end."""
    return "".join(map(_visible, text))


def printable(text: str) -> str:
    """Text on one line, its control characters as codes."""
    return "".join(
        _visible(c) if unicodedata.category(c)[0] == "C" and c != "\n" else c for c in " ".join(text.split())
    )


def _visible(character: str) -> str:
    signs = {" ": "·", "\n": "↵\n", "\t": "⇥", "\r": "␍"}
    if character in signs:
        return signs[character]
    if unicodedata.category(character)[0] in "CZ":  # control, format (text direction too), odd spaces
        return f"\\u{ord(character):04x}"
    return character


# ---------------------------------------------------------------- terminal


def show_lengths(lengths: Lengths, *, unit: str = "tokens") -> None:
    """Percentiles, the trained share, and a histogram of bars."""
    percentiles = [f"{value:,}" for value in lengths.percentiles.values()]
    console.table(
        ("rows", unit, "trained", *lengths.percentiles),
        [(f"{lengths.rows:,}", f"{lengths.tokens:,}", f"{lengths.labelled_share:.1%}", *percentiles)],
        title=f"Length in {unit}",
    )
    highest = max(count for _, _, count in lengths.histogram)
    width = len(f"{lengths.histogram[-1][1]:,}")
    for start, end, count in lengths.histogram:
        bar = "█" * -(-count * 40 // highest)
        console.say(f"  {start:>{width},} – {end - 1:>{width},}  {bar} {count:,}")


def show_rows(examples: Sequence[Tokens], tokenizer: Tokenizer, *, rows: int = 3) -> None:
    """The first rows as tokens: green between « and » what is trained, dim what is only read."""
    for example in examples[:rows]:
        labelled = len(example.labels) - example.labels.count(IGNORE)
        cut = ", prompt cut" if example.cut else ""
        console.say(f"{example.source}: {len(example.input_ids):,} tokens, {labelled:,} trained{cut}", style="bold")
        console.show(row_text(pieces(example, tokenizer)))


def row_text(shown: Sequence[Piece], *, most: int = TOKENS_SHOWN) -> Text:
    """Pieces as styled text. Neighbours differ by an underline; of a long row the middle is left out."""
    from rich.text import Text

    text = Text()
    trained = False
    for number, piece in enumerate(_ends(shown, most)):
        now = piece is not None and piece.trained
        if now != trained:
            text.append("«" if now else "»", "green")
            trained = now
        if piece is None:
            text.append(f" … {len(shown) - most:,} more tokens … ", "italic")
            continue
        style = "bold green" if piece.trained else "dim"
        text.append(visible(piece.text), f"{style} underline" if number % 2 else style)
    if trained:
        text.append("»", "green")
    return text


def _ends(shown: Sequence[Piece], most: int) -> Iterator[Piece | None]:
    """All pieces, or the first third and the last two of `most`, with None for the gap."""
    if len(shown) <= most:
        yield from shown
        return
    head = most // 3
    yield from shown[:head]
    yield None
    yield from shown[len(shown) - (most - head) :]
