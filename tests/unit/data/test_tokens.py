"""Tokens kept on disk by content: read back exactly, and rendered again when anything that matters changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, make_tokenizer

from luthier.data import tokens
from luthier.data.conversation import Conversation, Message, Source
from luthier.data.render import Example, Renderer

EMPTY = Conversation((Message("user", "Who?"), Message("assistant", "I.", train=False)), Source("rows.json", 3))
ROWS = [
    Conversation((Message("user", "Who are you?"), Message("assistant", "I make violins.")), Source("rows.json", 1)),
    Conversation((Message("text", "你是谁？"),), Source("rows.json", 2)),
    EMPTY,
    Conversation(
        (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")),
        Source("rows.json", 4),
    ),
]


def tokenize(renderer: Any, rows: list[Conversation], train_on: Any, cache: Path | None) -> list[list[Example]]:
    """All parts as one list."""
    return [examples for _, part in tokens.tokenize(renderer, rows, len(rows), train_on, cache) for examples in part]


class Unusable(Renderer):
    """Has all that the cache's key is made of, and cannot render."""

    def examples_of_all(self, conversations: Any, train_on: Any = "all") -> Any:
        raise AssertionError("rendered, and not read from the cache")


@pytest.fixture
def warm(tokenizer: Any, tmp_path: Path) -> Path:
    """A cache that holds `ROWS`, all turns trained."""
    tokenize(Renderer(tokenizer), ROWS, "all", tmp_path)
    return tmp_path


def test_what_is_read_is_what_was_rendered(tokenizer: Any, warm: Path) -> None:
    rendered = tokenize(Renderer(tokenizer), ROWS, "all", None)
    assert rendered == Renderer(tokenizer).examples_of_all(ROWS)
    assert [len(some) for some in rendered] == [1, 1, 0, 1]
    assert tokenize(Unusable(tokenizer), ROWS, "all", warm) == rendered


def test_the_same_rows_of_another_file_are_found_and_keep_their_place(tokenizer: Any, warm: Path) -> None:
    moved = [replace(row, source=Source("other.jsonl", row.source.number + 10, "line")) for row in ROWS]
    found = tokenize(Unusable(tokenizer), moved, "all", warm)
    assert [str(example.source) for some in found for example in some] == [
        "other.jsonl, line 11",
        "other.jsonl, line 12",
        "other.jsonl, line 14",
    ]


def changed(message: Message) -> list[Conversation]:
    return [Conversation((ROWS[0].messages[0], message), ROWS[0].source), *ROWS[1:]]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:-1],
        [ROWS[1], ROWS[0], *ROWS[2:]],
        changed(Message("assistant", "I make violas.")),
        changed(Message("assistant", "I make violins.", train=False)),
        changed(Message("assistant", "I make violins.", reasoning="Do I?")),
    ],
    ids=["fewer", "another order", "another word", "not trained", "with reasoning"],
)
def test_other_rows_are_rendered(tokenizer: Any, warm: Path, rows: list[Conversation]) -> None:
    with pytest.raises(AssertionError, match="rendered, and not read from the cache"):
        tokenize(Unusable(tokenizer), rows, "all", warm)


@pytest.mark.parametrize(
    "renderer",
    [
        Unusable(make_tokenizer(CHATML + " ")),
        Unusable(make_tokenizer(), thinking=False),
        Unusable(make_tokenizer(eos_token="<|endoftext|>")),
    ],
    ids=["template", "thinking", "special tokens"],
)
def test_another_renderer_renders(warm: Path, renderer: Renderer) -> None:
    with pytest.raises(AssertionError, match="rendered, and not read from the cache"):
        tokenize(renderer, ROWS, "all", warm)


def test_another_tokenizer_or_choice_of_turns_renders(warm: Path) -> None:
    more = make_tokenizer()
    more.add_tokens(["violins"])
    for renderer, train_on in ((Unusable(more), "all"), (Unusable(make_tokenizer()), "last")):
        with pytest.raises(AssertionError, match="rendered, and not read from the cache"):
            tokenize(renderer, ROWS, train_on, warm)


def test_the_cache_is_one_file_and_nothing_half_written(warm: Path) -> None:
    (file,) = warm.iterdir()
    assert file.suffix == ".npz" and len(file.stem) == 64


def test_nothing_trained_and_nothing_at_all(tokenizer: Any, tmp_path: Path) -> None:
    for rows in ([EMPTY], []):
        assert tokenize(Renderer(tokenizer), rows, "all", tmp_path) == [[] for _ in rows]
        assert tokenize(Unusable(tokenizer), rows, "all", tmp_path) == [[] for _ in rows]


def test_many_rows_go_chunk_by_chunk(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Counting(Renderer):
        def examples_of_all(self, conversations: Any, train_on: Any = "all") -> Any:
            sizes.append(len(conversations))
            return super().examples_of_all(conversations, train_on)

    monkeypatch.setattr(tokens, "CHUNK", 3)
    assert tokenize(Counting(tokenizer), ROWS, "all", None) == Renderer(tokenizer).examples_of_all(ROWS)
    assert sizes == [3, 1]


def test_parts_are_kept_apart(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a row more, only the part that it is in is rendered again."""
    monkeypatch.setattr(tokens, "PART", 3)
    parts = tokens.tokenize(Renderer(tokenizer), ROWS[:3], 3, "all", tmp_path)
    assert [len(part) for _, part in parts] == [3]
    sizes: list[int] = []

    class Counting(Renderer):
        def examples_of_all(self, conversations: Any, train_on: Any = "all") -> Any:
            sizes.append(len(conversations))
            return super().examples_of_all(conversations, train_on)

    assert tokenize(Counting(tokenizer), ROWS, "all", tmp_path) == Renderer(tokenizer).examples_of_all(ROWS)
    assert sizes == [1]
