"""A row becomes a Conversation. Each format is one small function; nothing after this file knows which it was.

alpaca             instruction, output; input, history [[question, answer], …], system
sharegpt           conversations [{from, value}, …]; system
messages           messages [{role, content}, …], each with reasoning_content and train: false (or weight: 0); system
prompt_completion  prompt, completion; system
text               text: a whole document, every token of it trained
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.choice import Choice
from luthier.data.conversation import RESERVED, Conversation, Message, Role, Source
from luthier.data.problems import Problems, describe
from luthier.data.sources import Rows
from luthier.data.store import stored_conversations
from luthier.errors import DataError, Problem
from luthier.recipe.schema import DataSettings


@dataclass(frozen=True)
class Converted:
    """`unused`: columns, and fields of turns, that the format does not read. To be shown to the user once.

    `dropped`: rows that are no conversation, and why; empty unless `data.bad_rows: drop`.
    `fits`: for each format that was considered, how many rows have the columns it needs.
    """

    format: Choice[str]
    conversations: Sequence[Conversation]
    unused: list[str]
    dropped: dict[Source, str] = field(default_factory=dict)
    fits: dict[str, int] = field(default_factory=dict)


def convert(rows: Rows, settings: DataSettings) -> Converted:
    """One conversation a row, in order, with the recipe's system prompt where a row has none.

    Raises DataError with all problems: each names file, row, field and what to do. No row is skipped unless
    `data.bad_rows` says so; `dropped` has those of `rows` too.
    """
    if not rows.rows:  # all were dropped
        return Converted(Choice("none", "no row can be used"), [], [], rows.dropped)
    columns = Counter(column for _, row in rows.rows for column in row)
    choice, fits = _choose(columns, rows, settings)
    chosen = FORMATS[choice.value]
    names = _names(chosen, settings.columns)
    problems = Problems(str(rows.path), settings.bad_rows == "drop", dict(rows.dropped))
    unused = {column: None for column in columns if column not in names.values()}
    default = (Message("system", settings.system),) if settings.system else ()
    if default and choice.value == "text":
        problems.add("data.system", "plain text has no system prompt", "take data.system out of the recipe")
    conversations = stored_conversations()
    for source, values in rows.rows:
        messages = tuple(chosen.convert(Row(source, values, names, problems, unused)))
        if messages and messages[0].role not in ("system", "text"):
            messages = default + messages
        if source not in problems.dropped:
            conversations.append(Conversation(messages, source))
    problems.raise_any()
    return Converted(choice, conversations, list(unused), problems.dropped, fits)


# ---------------------------------------------------------------- reading one row


@dataclass
class Row:
    """A row's fields under our names. What is wrong with one is noted in `problems`, and reading goes on."""

    source: Source
    values: dict[str, Any]
    names: dict[str, str]
    problems: Problems
    unused: dict[str, None]

    def text(self, name: str) -> str:
        """A field that must hold text."""
        column = self.names[name]
        if column not in self.values:
            self.wrong(f"has no `{column}`", f"add `{column}`, or delete the row")
            return ""
        return self.checked(self.values[column], f"`{column}`")

    def optional_text(self, name: str) -> str:
        """A field that may be missing, null or empty."""
        column = self.names.get(name, "")
        value = self.values.get(column)
        return "" if value in (None, "") else self.checked(value, f"`{column}`")

    def optional_items(self, name: str) -> list[Any]:
        column = self.names.get(name, "")
        value = self.values.get(column)
        if value in (None, "", []):
            return []
        return self.checked_list(value, f"`{column}`")

    def items(self, name: str) -> list[Any]:
        """A field that must hold a list with something in it."""
        column = self.names[name]
        if column not in self.values:
            self.wrong(f"has no `{column}`", f"add `{column}`, or delete the row")
            return []
        return self.checked_list(self.values[column], f"`{column}`")

    def checked(self, value: Any, what: str) -> str:
        if not isinstance(value, str):
            self.wrong(f"{what} is {describe(value)}, not text", "write it as text, or delete the row")
            return ""
        if not value or value.isspace():
            self.wrong(f"{what} is empty", "fill it in, or delete the row")
        if RESERVED in value:
            self.wrong(f"{what} holds U+FDD0, which is not a character of any language", "delete that character")
        return value

    def checked_list(self, value: Any, what: str) -> list[Any]:
        if not isinstance(value, list):
            self.wrong(f"{what} is {describe(value)}, not a list", "write it as a list, or delete the row")
            return []
        if not value:
            self.wrong(f"{what} is an empty list", "fill it in, or delete the row")
        return value

    def wrong(self, what: str, fix: str) -> None:
        self.problems.add(self.source, what, fix)


def _alpaca(row: Row) -> Iterator[Message]:
    yield from _system(row)
    for number, pair in enumerate(row.optional_items("history"), 1):
        if not isinstance(pair, list) or len(pair) != 2:
            row.wrong(f"history {number} is not a pair", "write each as [question, answer]")
            continue
        yield Message("user", row.checked(pair[0], f"question of history {number}"))
        yield Message("assistant", row.checked(pair[1], f"answer of history {number}"))
    instruction, added = row.text("instruction"), row.optional_text("input")
    yield Message("user", f"{instruction}\n{added}" if added else instruction)
    yield Message("assistant", row.text("output"))


def _prompt_completion(row: Row) -> Iterator[Message]:
    yield from _system(row)
    yield Message("user", row.text("prompt"))
    yield Message("assistant", row.text("completion"))


def _text(row: Row) -> Iterator[Message]:
    yield Message("text", row.text("text"))


def _messages(row: Row) -> list[Message]:
    return _turns(row, row.items("messages"))


def _sharegpt(row: Row) -> list[Message]:
    return _turns(row, row.items("conversations"))


def _system(row: Row) -> Iterator[Message]:
    if system := row.optional_text("system"):
        yield Message("system", system)


ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
FOLLOWS: dict[str, tuple[str, ...]] = {  # the roles before which a role may stand; "" is the beginning
    "system": ("",),
    "user": ("", "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
TURN_FIELDS = frozenset({"role", "from", "content", "value", "train", "weight", "reasoning_content"})


def _turns(row: Row, turns: list[Any]) -> list[Message]:
    """Turns with role and content (or from and value): user and assistant alternate, an assistant is last."""
    messages = list(_system(row))
    before = messages[-1].role if messages else ""
    for number, turn in enumerate(turns, 1):
        message = _turn(row, turn, f"turn {number}")
        if message is None:
            return messages  # the order of what follows cannot be judged
        if before not in FOLLOWS[message.role]:
            place = f"stands after {before}" if before else "stands first"
            fix = "user and assistant alternate after one optional system turn: correct or delete the row"
            row.wrong(f"turn {number} ({message.role}) {place}", fix)
        before = message.role
        messages.append(message)
    if turns and before != "assistant":
        row.wrong(f"the last turn is {before}, so there is no answer to learn", "add the answer, or delete that turn")
    return messages


def _turn(row: Row, turn: Any, place: str) -> Message | None:
    if not isinstance(turn, dict):
        row.wrong(f"{place} is {describe(turn)}, not an object", 'write it as {"role": "user", "content": "…"}')
        return None
    for name in [name for name in turn if name not in TURN_FIELDS]:
        if name == "tool_calls" and turn[name]:
            row.wrong(f"{place} has `tool_calls`", "calls of tools cannot be trained yet: delete the row")
        elif turn[name] not in (None, "", []):
            row.unused[f"{name} (of a turn)"] = None
    role, content = (_first_given(turn, names) for names in (("role", "from"), ("content", "value")))
    if not isinstance(role, str) or role not in ROLES:
        found = f"has the role {role[:40]!r}" if isinstance(role, str) else "has no role"
        row.wrong(f"{place} {found}", f"use one of {', '.join(ROLES)}")
        return None
    reasoning = turn.get("reasoning_content")
    return Message(
        role=ROLES[role],
        content=row.checked(content, f"content of {place} ({role})"),
        train=_is_trained(row, turn, place),
        reasoning=row.checked(reasoning, f"reasoning_content of {place}") if reasoning else None,
    )


def _first_given(turn: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Parquet gives every turn every field, null where it was absent."""
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _is_trained(row: Row, turn: dict[str, Any], place: str) -> bool:
    """`train: false` or, as OpenAI writes it, `weight: 0`. Null is as good as absent."""
    train, weight = turn.get("train"), turn.get("weight")
    if train not in (None, True, False) or weight not in (None, 0, 1):
        what = f"{place}: train is {describe(train)}, weight is {describe(weight)}"
        row.wrong(what, "train is true or false, weight is 0 or 1")
    return train is not False and weight != 0


@dataclass(frozen=True)
class Format:
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Row], Iterator[Message] | list[Message]]
    # names that others give to the required fields, in the same order: for the mapping an error proposes
    known_as: tuple[tuple[str, ...], ...] = field(default=())

    @property
    def fields(self) -> tuple[str, ...]:
        return self.required + self.optional


QUESTIONS = ("question", "query", "prompt", "problem", "user", "human", "q", "指令", "问题", "提问", "问")
ANSWERS = ("answer", "response", "completion", "reply", "assistant", "gpt", "target", "a", "输出", "回答", "答案", "答")

# In this order one is chosen where several fit equally well.
FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), ("system",), _messages, (("conversation", "chat", "dialogue", "turns"),)),
    "sharegpt": Format(("conversations",), ("system",), _sharegpt, (("items",),)),
    "alpaca": Format(("instruction", "output"), ("input", "history", "system"), _alpaca, (QUESTIONS, ANSWERS)),
    "prompt_completion": Format(("prompt", "completion"), ("system",), _prompt_completion, (QUESTIONS, ANSWERS)),
    "text": Format(("text",), (), _text, (("content", "document", "body", "正文", "文本", "内容"),)),
}


# ---------------------------------------------------------------- which format


def _choose(columns: Counter[str], rows: Rows, settings: DataSettings) -> tuple[Choice[str], dict[str, int]]:
    """The format the recipe names, else the one whose required columns stand in most rows; and how many those are."""
    _check_mapping(columns, settings)
    allowed = [settings.format] if settings.format != "auto" else list(FORMATS)
    allowed = [name for name in allowed if settings.columns.keys() <= set(FORMATS[name].fields)]
    filled = {name: _rows_filled(FORMATS[name], columns, settings.columns) for name in allowed}
    fitting = [name for name in allowed if filled[name]]
    if not fitting:
        raise DataError(_nothing_fits(columns, rows, settings, allowed))
    best = max(fitting, key=lambda name: filled[name])
    if settings.format != "auto":
        return Choice(best, "set by data.format"), filled
    total = len(rows.rows)
    share = "every row has" if filled[best] == total else f"{filled[best]:,} of {total:,} rows have"
    also = "".join(f"; {name} would fit too" for name in fitting if name != best)
    needed = " and ".join(_names(FORMATS[best], settings.columns)[name] for name in FORMATS[best].required)
    return Choice(best, f"{share} {needed}{also}"), {name: filled[name] for name in fitting}


def _names(chosen: Format, mapping: dict[str, str]) -> dict[str, str]:
    """Our name → their column. A column that the mapping gives to one field is not read as another too."""
    claimed = set(mapping.values())
    return {name: mapping.get(name, name) for name in chosen.fields if name in mapping or name not in claimed}


def _rows_filled(chosen: Format, columns: Counter[str], mapping: dict[str, str]) -> int:
    """At least one of the required columns is missing in all other rows."""
    names = _names(chosen, mapping)
    return min(columns[names[name]] if name in names else 0 for name in chosen.required)


def _check_mapping(columns: Counter[str], settings: DataSettings) -> None:
    problems = Problems("data.columns")
    fields = sorted({name for form in FORMATS.values() for name in form.fields})
    for name, column in settings.columns.items():
        if name not in fields:
            problems.add(f"data.columns.{name}", "no format has such a field", f"use one of {', '.join(fields)}")
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1)
            fix = f"did you mean {near[0]}?" if near else f"the columns are {_listed(columns)}"
            problems.add(f"data.columns.{name}", f"the file has no column {column!r}", fix)
    problems.raise_any()


def _nothing_fits(columns: Counter[str], rows: Rows, settings: DataSettings, allowed: list[str]) -> Problem:
    where = str(rows.path)
    if not allowed:
        what = f"data.columns names {', '.join(settings.columns)}, which no one format has together"
        known = "; ".join(f"{name}: {', '.join(form.fields)}" for name, form in FORMATS.items())
        return Problem(where, what, f"name the fields of one format ({known})")
    proposals = {name: _proposal(FORMATS[name], columns, settings.columns) for name in allowed}
    nearest = max(allowed, key=lambda name: (_likeness(FORMATS[name], columns, proposals[name]), name == "alpaca"))
    needed = " and ".join(FORMATS[nearest].required)
    what = f"its columns ({_listed(columns)}) fit no format; the nearest is {nearest}, which needs {needed}"
    if settings.format != "auto":
        what = f"its columns ({_listed(columns)}) are not those of data.format {nearest}, which needs {needed}"
    mapping = ", ".join(f"{name}: {_yaml(column)}" for name, column in proposals[nearest].items())
    fix = f"say in the recipe which column is which: data: {{columns: {{{mapping}}}}}"
    if rows.kind in ("csv", "tsv"):
        fix += "; the first line of the file must hold the columns' names"
    return Problem(where, what, fix)


def _proposal(chosen: Format, columns: Counter[str], mapping: dict[str, str]) -> dict[str, str]:
    """A mapping for each required field that has no column of its own name; YOUR_COLUMN where none is like it."""
    proposed = dict(mapping)
    for name, known_as in zip(chosen.required, chosen.known_as, strict=True):
        if name in columns or name in proposed:
            continue
        free = {c.strip().lower(): c for c in columns if c not in proposed.values() and c not in chosen.required}
        known = [other for other in (name, *known_as) if other in free]
        near = difflib.get_close_matches(name, free, n=1, cutoff=0.75)
        proposed[name] = free[(known or near)[0]] if known or near else "YOUR_COLUMN"
    return proposed


def _yaml(column: str) -> str:
    """Quoted where YAML could read it as something else than text (`no`, `1`, `a: b`)."""
    return column if column.isidentifier() and len(column) > 3 else json.dumps(column, ensure_ascii=False)


def _likeness(chosen: Format, columns: Counter[str], proposal: dict[str, str]) -> float:
    return sum(name in columns or proposal.get(name, "") in columns for name in chosen.required) / len(chosen.required)


def _listed(columns: Counter[str]) -> str:
    names = [name[:40] or "(no name)" for name in columns]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
