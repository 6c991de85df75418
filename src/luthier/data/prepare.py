"""The whole way from data references to examples, with a ledger of every row."""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.choice import Choice
from luthier.data import served
from luthier.data.conversation import Conversation, Message, Source
from luthier.data.formats import convert
from luthier.data.ledger import Entry, Ledger, Outcome
from luthier.data.render import Example, Renderer
from luthier.data.sources import read_rows
from luthier.data.split import find_duplicates, split, unseen
from luthier.data.tokens import tokenize
from luthier.errors import DataError, Problem, all_of
from luthier.hub.cache import cache_dir
from luthier.hub.fetch import fetch_data
from luthier.recipe.schema import DataSettings

LONGEST = 4096  # tokens; longer only when asked for, since memory grows with it


@dataclass(frozen=True)
class Prepared:
    """Rows ready to train. `heldout` [i] are the sequences of `heldout_conversations` [i]."""

    train: list[Example]
    heldout: list[list[Example]]
    heldout_conversations: list[Conversation]
    ledger: Ledger
    files: list[dict[str, Any]]
    unused_columns: list[str]
    rows: int
    """Rows trained: several sequences may come from one."""

    @property
    def fingerprint(self) -> str:
        """Of all data files: the same again only while none of them changes."""
        return hashlib.sha256("".join(file["sha256"] for file in self.files).encode()).hexdigest()[:12]

    @property
    def heldout_examples(self) -> list[Example]:
        return [example for some in self.heldout for example in some]


def pick_max_length(settings: DataSettings, context_length: int | None) -> Choice[int]:
    """Longest sequence, in tokens. Raises DataError for more than the model can take."""
    if settings.max_length == "auto":
        if context_length is not None and context_length < LONGEST:
            return Choice(context_length, "the model takes no more")
        return Choice(LONGEST, "longer rows need data.max_length, as memory grows with them")
    if context_length is not None and settings.max_length > context_length:
        what = f"{settings.max_length} tokens, and the model takes {context_length}"
        raise DataError(Problem("data.max_length", what, f"set it to {context_length} or less"))
    return Choice(settings.max_length, "the recipe asks for it")


def prepare(settings: DataSettings, renderer: Renderer, *, max_length: int, seed: int) -> Prepared:
    """Reads, converts, splits and renders the rows. Raises DataError, ModelError or HubError with all problems."""
    references = [settings.train] if isinstance(settings.train, str) else settings.train
    (conversations, files, unused, dropped), (own_heldout, heldout_files, _, bad) = all_of(
        lambda: _read(references, settings), lambda: _read([settings.heldout] if settings.heldout else [], settings)
    )

    repeats = find_duplicates(conversations)
    ledger = Ledger(repeats.conflicts)
    ledger.open(c.source for c in (*conversations, *own_heldout))
    ledger.open(source for source, _ in (*dropped, *bad))
    for source, why in (*dropped, *bad):
        ledger.add(Entry(source, "dropped", "a bad row, left out by data.bad_rows", why))
    if not conversations:
        raise DataError(_nothing_left(references, ledger))
    if settings.duplicates == "drop":
        conversations = repeats.unique
        for conversation, first in repeats.repeats:
            place = f"{first.unit} {first.number}" if first.file == conversation.source.file else str(first)
            ledger.add(Entry(conversation.source, "duplicate", "repeats an earlier row", f"as {place}"))
    if settings.heldout:
        train, (heldout, seen) = conversations, unseen(own_heldout, conversations)
        for conversation in seen:
            ledger.add(Entry(conversation.source, "dropped", "a held-out row whose prompt is also in training"))
    else:
        train, heldout = split(conversations, settings.holdout, seed)

    fit = _Fit(renderer, settings, max_length, ledger)
    rendered = tokenize(renderer, [*train, *heldout], settings.train_on, cache_dir() / "tokens")
    train_examples = fit.examples(train, rendered[: len(train)], "used")
    heldout_examples = fit.examples(heldout, rendered[len(train) :], "heldout")
    fit.raise_any()
    ledger.check()
    served.check(renderer, train_examples, settings.train_on)
    if not train_examples:
        raise DataError(_nothing_left(references, ledger))
    return Prepared(
        train=[example for _, some in train_examples for example in some],
        heldout=[some for _, some in heldout_examples],
        heldout_conversations=[conversation for conversation, _ in heldout_examples],
        ledger=ledger,
        files=files + heldout_files,
        unused_columns=unused,
        rows=len(train_examples),
    )


def _read(
    references: Sequence[str], settings: DataSettings
) -> tuple[list[Conversation], list[dict[str, Any]], list[str], list[tuple[Source, str]]]:
    """Conversations, facts of the files, unused columns, and bad rows with what is wrong with them."""
    conversations: list[Conversation] = []
    dropped: list[tuple[Source, str]] = []
    files: list[dict[str, Any]] = []
    unused: dict[str, None] = {}
    problems: list[Problem] = []
    for path in [path for reference in references for path in fetch_data(reference)]:
        try:
            with _no_garbage_collection():
                rows = read_rows(path, drop=settings.bad_rows == "drop")
                converted = convert(rows, settings)
        except DataError as error:
            problems += error.problems
            continue
        conversations += converted.conversations
        dropped += converted.dropped.items()
        unused.update(dict.fromkeys(converted.unused))
        fact = {"path": str(path), "sha256": rows.sha256, "kind": rows.kind, "encoding": rows.encoding}
        files.append(
            {
                **fact,
                "format": converted.format.value,
                "why": converted.format.reason,
                "rows": len(rows.rows) + len(rows.dropped),
            }
        )
    if problems:
        raise DataError(*problems)
    return conversations, files, list(unused), dropped


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Of a million new objects none is garbage; looking for it again and again took a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Fit:
    """Decides about rows that are too long, and writes every row's outcome into the ledger."""

    def __init__(self, renderer: Renderer, settings: DataSettings, max_length: int, ledger: Ledger) -> None:
        self.renderer, self.settings, self.max_length, self.ledger = renderer, settings, max_length, ledger
        self.problems: list[Problem] = []

    def examples(
        self, conversations: list[Conversation], rendered: list[list[Example]], outcome: Outcome
    ) -> list[tuple[Conversation, list[Example]]]:
        """The conversations that stay, with their sequences."""
        kept = []
        for conversation, examples in zip(conversations, rendered, strict=True):
            fitted, entry = self._fit(conversation, examples, outcome)
            self.ledger.add(entry)
            if fitted:
                kept.append((conversation, fitted))
        return kept

    def _fit(self, row: Conversation, examples: list[Example], outcome: Outcome) -> tuple[list[Example], Entry]:
        if not examples:
            return [], Entry(row.source, "dropped", "no turn of it is to be trained")
        longest = max(len(example.input_ids) for example in examples)
        if longest <= self.max_length:
            return examples, Entry(row.source, outcome)
        too_long = f"longer than {self.max_length:,} tokens"
        if self.settings.too_long == "error":
            fix = "raise data.max_length, shorten the row, or set data.too_long: drop or cut_prompt"
            self.problems.append(Problem(str(row.source), f"{too_long} ({longest:,})", fix))
        if self.settings.too_long == "cut_prompt":
            cut = self._cut(row, examples)
            if cut:
                detail = f"{longest:,} tokens"
                return cut, Entry(row.source, outcome, f"prompt cut to {self.max_length:,} tokens", detail, cut=True)
            too_long = f"{too_long}, and no question fits before its answer"
        return [], Entry(row.source, "dropped", too_long, f"{longest:,} tokens")

    def _cut(self, row: Conversation, examples: list[Example]) -> list[Example]:
        """The row with the left of its prompt taken away: first whole earlier turns, then the start of the question.

        Plain text, which has no prompt, is cut into pieces instead. Empty where no question would be left.
        """
        if row.messages[0].role == "text":
            return [piece for example in examples for piece in self._pieces(example)]
        system, turns = _head(row.messages)
        questions = [i for i, message in enumerate(turns) if message.role == "user"]
        for start in questions[1:]:
            fitted = self._try(row, (*system, *turns[start:]))
            if fitted:
                return fitted
        question, *answer = turns[questions[-1] :]
        low, high = 0, len(question.content)  # the longest end of the question that fits, by bisection
        while low < high:
            middle = (low + high + 1) // 2
            fits = self._try(row, (*system, _end(question, middle), *answer))
            low, high = (middle, high) if fits else (low, middle - 1)
        return self._try(row, (*system, _end(question, low), *answer)) if low else []

    def _pieces(self, example: Example) -> list[Example]:
        """Each begins with the last token of the one before it, so that every token but the first is predicted once."""
        return [
            replace(
                example,
                input_ids=example.input_ids[start : start + self.max_length],
                labels=example.labels[start : start + self.max_length],
                cut=True,
            )
            for start in range(0, len(example.input_ids) - 1, self.max_length - 1)
        ]

    def _try(self, row: Conversation, messages: tuple[Message, ...]) -> list[Example]:
        examples = self.renderer.examples(Conversation(messages, row.source), self.settings.train_on)
        fits = examples and max(len(e.input_ids) for e in examples) <= self.max_length
        return [replace(e, cut=True) for e in examples] if fits else []

    def raise_any(self) -> None:
        if self.problems:
            shown, more = self.problems[:20], len(self.problems) - 20
            rest = [Problem("and", f"{more} more rows are too long", "the same")] if more > 0 else []
            raise DataError(*shown, *rest)


def _head(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    start = 1 if messages[0].role == "system" else 0
    return messages[:start], messages[start:]


def _end(message: Message, characters: int) -> Message:
    return replace(message, content=message.content[len(message.content) - characters :])


def _nothing_left(references: Sequence[str], ledger: Ledger) -> Problem:
    """Why most rows are gone, and where the first of them stands."""
    gone = [entry for entry in ledger.entries if entry.outcome == "dropped"]
    (reason, count), *_ = Counter(entry.reason for entry in gone).most_common(1)
    first = next(entry for entry in gone if entry.reason == reason)
    what = f"no row is left to train on ({count:,} of {ledger.read:,}: {reason})"
    where = f"{first.source.unit} {first.source.number}"
    fix = f"begin with {where}" + (f": {first.detail}" if first.detail else "")
    if reason.startswith("longer"):
        fix = f"raise data.max_length, or set data.too_long: cut_prompt; {where} has {first.detail}"
    return Problem(", ".join(references), what, fix)
