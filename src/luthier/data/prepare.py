"""The whole way from data references to examples, with a ledger of every row."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier import console
from luthier.choice import Choice
from luthier.data import served
from luthier.data.conversation import Conversation, Message, Source
from luthier.data.formats import Converted, convert
from luthier.data.ledger import Entry, Ledger, Outcome
from luthier.data.render import Example, Renderer
from luthier.data.sources import Rows, read_rows
from luthier.data.split import Duplicates, find_duplicates, split, unseen
from luthier.data.store import Stored, stored_conversations
from luthier.data.tokens import tokenize
from luthier.errors import DataError, Problem, all_of
from luthier.hub.cache import cache_dir
from luthier.hub.fetch import fetch_data
from luthier.recipe.schema import DataSettings

LARGE = 50_000_000  # bytes from which on reading takes seconds, so that something is said before
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


@dataclass(frozen=True)
class Gathered:
    """Rows read, told apart and split, before any is tokens.

    `duplicates`: every repeat and conflict of the training rows, whatever `data.duplicates` makes of them.
    `dropped`: bad rows and what is wrong with them. `seen`: held-out rows left out, as their prompt is in training.
    `tick`: told how many rows were gone through, by who takes long to.
    """

    train: Sequence[Conversation]
    heldout: Sequence[Conversation]
    duplicates: Duplicates
    dropped: list[tuple[Source, str]]
    seen: Sequence[Conversation]
    ledger: Ledger
    files: list[dict[str, Any]]
    unused_columns: list[str]
    tick: Callable[[int], None] = field(default=lambda rows: None, compare=False)


See = Callable[[Rows, Converted], None]


def gather(settings: DataSettings, *, seed: int, see: See = lambda rows, converted: None) -> Gathered:
    """Reads, converts and splits the rows. `see` is shown each training file as it stands.

    Raises DataError or HubError with all problems.
    """
    references = _references(settings)
    (conversations, files, unused, dropped), (own_heldout, heldout_files, _, bad) = all_of(
        lambda: _read(references, settings, see),
        lambda: _read([settings.heldout] if settings.heldout else [], settings, lambda rows, converted: None),
    )

    repeats = find_duplicates(conversations)
    ledger = Ledger(repeats.conflicts)
    ledger.open(c.source for c in itertools.chain(conversations, own_heldout))
    ledger.open(source for source, _ in (*dropped, *bad))
    for source, why in (*dropped, *bad):
        ledger.add(Entry(source, "dropped", "a bad row, left out by data.bad_rows", why))
    if not conversations:
        raise DataError(_nothing_left(references, ledger))
    rows: Sequence[Conversation] = conversations
    if settings.duplicates == "drop":
        rows = repeats.unique
        for source, first in repeats.repeats:
            place = f"{first.unit} {first.number}" if first.file == source.file else str(first)
            ledger.add(Entry(source, "duplicate", "repeats an earlier row", f"as {place}"))
    seen: Sequence[Conversation] = []
    if settings.heldout:
        train, (heldout, seen) = rows, unseen(own_heldout, rows)
        for conversation in seen:
            ledger.add(Entry(conversation.source, "dropped", "a held-out row whose prompt is also in training"))
    else:
        train, heldout = split(rows, settings.holdout, seed)
    return Gathered(train, heldout, repeats, [*dropped, *bad], seen, ledger, files + heldout_files, unused)


Fitted = tuple[Conversation, list[Example]]
"""A row that stays, with its sequences."""


def fit(
    gathered: Gathered, settings: DataSettings, renderer: Renderer, max_length: int
) -> Iterator[tuple[list[Fitted], list[Fitted]]]:
    """Part by part, the rows to train and those held out, as tokens that are not too long.

    Each row's outcome goes into the ledger, which is checked at the end. Raises DataError or ModelError.
    """
    fitting = _Fit(renderer, settings, max_length, gathered.ledger)
    every = itertools.chain(gathered.train, gathered.heldout)
    start, total = 0, len(gathered.train) + len(gathered.heldout)
    for part, rendered in tokenize(renderer, every, total, settings.train_on, cache_dir() / "tokens"):
        border = max(0, len(gathered.train) - start)
        start += len(part)
        train = fitting.examples(part[:border], rendered[:border], "used")
        yield train, fitting.examples(part[border:], rendered[border:], "heldout")
    fitting.raise_any()
    gathered.ledger.check()
    if not gathered.ledger.counts()["used"]:
        raise DataError(_nothing_left(_references(settings), gathered.ledger))


def prepare(settings: DataSettings, renderer: Renderer, *, max_length: int, seed: int) -> Prepared:
    """The whole way. Raises DataError, ModelError or HubError with all problems."""
    gathered = gather(settings, seed=seed)
    train: list[Fitted] = []
    heldout: list[Fitted] = []
    for some, others in fit(gathered, settings, renderer, max_length):
        train += some
        heldout += others
    served.check(renderer, train, settings.train_on)
    return Prepared(
        train=[example for _, examples in train for example in examples],
        heldout=[examples for _, examples in heldout],
        heldout_conversations=[conversation for conversation, _ in heldout],
        ledger=gathered.ledger,
        files=gathered.files,
        unused_columns=gathered.unused_columns,
        rows=len(train),
    )


def _references(settings: DataSettings) -> list[str]:
    return [settings.train] if isinstance(settings.train, str) else settings.train


def _read(
    references: Sequence[str], settings: DataSettings, see: See
) -> tuple[Stored[Conversation], list[dict[str, Any]], list[str], list[tuple[Source, str]]]:
    """Conversations, facts of the files, unused columns, and bad rows with what is wrong with them."""
    conversations = stored_conversations()
    dropped: list[tuple[Source, str]] = []
    files: list[dict[str, Any]] = []
    unused: dict[str, None] = {}
    problems: list[Problem] = []
    for path in [path for reference in references for path in fetch_data(reference)]:
        size = path.stat().st_size if path.is_file() else 0
        if size > LARGE:
            console.say(f"Reading {path} ({size / 1e6:,.0f} MB) …")
        try:
            with no_garbage_collection():
                rows = read_rows(path, drop=settings.bad_rows == "drop")
                converted = convert(rows, settings)
        except DataError as error:
            problems += error.problems
            continue
        for conversation in converted.conversations:
            conversations.append(conversation)
        dropped += converted.dropped.items()
        unused.update(dict.fromkeys(converted.unused))
        see(rows, converted)
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
def no_garbage_collection() -> Iterator[None]:
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
    ) -> list[Fitted]:
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
                reason = f"prompt cut to {self.max_length:,} tokens"
                return cut, Entry(row.source, outcome, reason, detail, cut=True, too_long=longest)
            too_long = f"{too_long}, and no question fits before its answer"
        return [], Entry(row.source, "dropped", too_long, f"{longest:,} tokens", too_long=longest)

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
