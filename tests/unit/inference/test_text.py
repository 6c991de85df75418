"""Text is given when it is certain: whole characters, and nothing of a stop string."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.inference.text import Writer


def pieces(tokenizer: Any, ids: list[int], *stop: str) -> tuple[list[str], bool]:
    writer = Writer(tokenizer, stop)
    written = [writer.push(token) for token in ids]
    return [*written, writer.flush()], writer.stopped


class Letters:
    """A token is a letter: 1 is `a`, 2 is `b`, …"""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(ord("a") + token - 1) for token in ids)


def test_a_character_is_given_with_its_last_token(tokenizer: Any) -> None:
    ids = tokenizer("a鑫!")["input_ids"]  # 鑫 is not in the corpus: its three bytes are three tokens
    assert len(ids) == 5
    assert pieces(tokenizer, ids) == (["a", "", "", "鑫", "!", ""], False)


def test_half_a_character_at_the_end_is_left_out(tokenizer: Any) -> None:
    assert pieces(tokenizer, tokenizer("a鑫")["input_ids"][:-1]) == (["a", "", "", ""], False)


@pytest.mark.parametrize(
    "text", ["What wood is the best for a violin?", "你是谁？🎻 I make\n\n violins.", "é ä 鑫鑫 \t x"]
)
def test_the_pieces_are_the_text(tokenizer: Any, text: str) -> None:
    written, stopped = pieces(tokenizer, tokenizer(text)["input_ids"])
    assert ("".join(written), stopped) == (text, False)


def test_special_tokens_are_no_text(tokenizer: Any) -> None:
    ids = [
        *tokenizer("Hi")["input_ids"],
        tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        *tokenizer("!")["input_ids"],
    ]
    assert "".join(pieces(tokenizer, ids)[0]) == "Hi!"


@pytest.mark.parametrize(
    ("stop", "written", "stopped"),
    [
        (["cd"], ["a", "b", "", "", "", ""], True),
        (["ce"], ["a", "b", "", "cd", "e", ""], False),
        (["ex"], ["a", "b", "c", "d", "", "e"], False),
        (["bcdx", "d"], ["a", "", "", "bc", "", ""], True),
        (["bcd", "cd"], ["a", "", "", "", "", ""], True),
        (["", "e"], ["a", "b", "c", "d", "", ""], True),
    ],
)
def test_a_stop_string_ends_the_text(stop: list[str], written: list[str], stopped: bool) -> None:
    assert pieces(Letters(), [1, 2, 3, 4, 5], *stop) == (written, stopped)


def test_how_the_text_is_cut_changes_nothing() -> None:
    """Two tokens or one: the stop string that is complete first ends the text."""

    class Words(Letters):
        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            return "".join("abc" if token == 9 else chr(ord("a") + token - 1) for token in ids)

    assert "".join(pieces(Words(), [9], "abc", "b")[0]) == "a"
    assert "".join(pieces(Words(), [1, 2, 3], "abc", "b")[0]) == "a"
