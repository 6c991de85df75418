from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from luthier.data.conversation import Source
from luthier.data.preview import Piece, measure, pieces, row_text, show_lengths, show_rows, visible

FIRST = Source("rows.json", 1)


@dataclass(frozen=True)
class Row:
    input_ids: list[int]
    labels: list[int]
    source: Source = FIRST
    cut: bool = False


class ByteTokenizer:
    """Ids below 256 are bytes, 256 is the end-of-turn token."""

    def decode(self, token_ids: list[int], **options: Any) -> str:
        assert options == {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        data = b"".join(b"<|end|>" if i == 256 else bytes([i]) for i in token_ids)
        return data.decode(errors="replace")

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["<|end|>" if i == 256 else f"0x{i:02x}" for i in ids]


class WordTokenizer:
    """As SentencePiece does: a word's name keeps its leading space, and decoding it alone loses that."""

    names = ("▁Good", "▁day", "s")

    def decode(self, token_ids: list[int], **options: Any) -> str:
        return "".join(self.names[i] for i in token_ids).replace("▁", " ").removeprefix(" ")

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.names[i] for i in ids]


def row(prompt: str, answer: str, *, number: int = 1, cut: bool = False) -> Row:
    read, trained = list(prompt.encode()), [*answer.encode(), 256]
    return Row(read + trained, [-100] * len(read) + trained, Source("rows.json", number), cut)


def texts(example: Row) -> list[tuple[str, bool]]:
    return [(piece.text, piece.trained) for piece in pieces(example, ByteTokenizer())]


# ----------------------------------------------------------------- lengths


def test_lengths_of_rows() -> None:
    lengths = measure([Row([0] * n, [-100] * (n - 1) + [0]) for n in range(100, 0, -1)])
    assert lengths.to_json() == {
        "tokens": {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100},
        "total": 5050,
        "labelled": 100,
        "histogram": [[1 + 9 * i, 10 + 9 * i, 9] for i in range(11)] + [[100, 109, 1]],
    }
    assert lengths.rows == 100
    assert round(lengths.labelled_share, 4) == 0.0198


def test_lengths_of_one_row_and_of_equal_rows() -> None:
    assert measure([Row([1, 2], [-100, 2])]).to_json() == {
        "tokens": {"p50": 2, "p90": 2, "p95": 2, "p99": 2, "max": 2},
        "total": 2,
        "labelled": 1,
        "histogram": [[2, 3, 1]],
    }
    assert measure([Row([1], [1])] * 5).histogram == [(1, 2, 5)]


def test_shown_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    show_lengths(measure([row("", "x" * 9), row("", "x" * 9), row("", "x" * 1199)]))
    shown = capsys.readouterr().out
    assert "│ 3    │ 1,220  │ 100.0%  │ 10  │ 1,200 │ 1,200 │ 1,200 │ 1,200 │" in shown
    assert f"     10 –   109  {'█' * 40} 2\n" in shown
    assert f"  1,110 – 1,209  {'█' * 20} 1\n" in shown


# ------------------------------------------------------------------ pieces


def test_bytes_of_one_character_are_one_piece() -> None:
    assert texts(row("a嬛", "😀é")) == [("a", False), ("嬛", False), ("😀", True), ("é", True), ("<|end|>", True)]
    first = pieces(row("嬛", ""), ByteTokenizer())[0]
    assert first == Piece([0xE5, 0xAC, 0x9B], ["0xe5", "0xac", "0x9b"], "嬛", False)


def test_a_character_is_not_grouped_across_the_border_of_what_is_trained() -> None:
    data = list("嬛".encode())
    assert texts(Row(data, [-100, -100, data[2]])) == [("\ufffd", False), ("\ufffd", False), ("\ufffd", True)]


def test_bytes_that_are_no_character_stay_single() -> None:
    assert texts(Row([0xFF, 97, 0xE5, 0xAC], [-100] * 4)) == [
        ("\ufffd", False),
        ("a", False),
        ("\ufffd", False),
        ("\ufffd", False),
    ]


def test_a_replacement_character_in_the_data_is_shown_byte_by_byte() -> None:
    assert [text for text, _ in texts(row("a\ufffdb", ""))] == ["a", "\ufffd", "\ufffd", "\ufffd", "b", "<|end|>"]


def test_the_leading_space_that_decoding_drops_is_kept() -> None:
    shown = pieces(Row([0, 1, 2], [-100] * 3), WordTokenizer())
    assert [piece.text for piece in shown] == [" Good", " day", "s"]


def test_whitespace_and_control_characters_are_visible() -> None:
    assert visible("a b\n\t\r\x1b[31m\u202e\u3000") == "a·b↵\n⇥␍\\u001b[31m\\u202e\\u3000"


# ----------------------------------------------------------------- terminal


def test_trained_tokens_stand_between_guillemets_in_green() -> None:
    text = row_text(pieces(row("Hi\n", "Ja"), ByteTokenizer()))
    assert text.plain == "Hi↵\n«Ja<|end|>»"
    styles = [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]
    assert styles == [
        ("H", "dim"),
        ("i", "dim underline"),
        ("↵\n", "dim"),
        ("«", "green"),
        ("J", "bold green underline"),
        ("a", "bold green"),
        ("<|end|>", "bold green underline"),
        ("»", "green"),
    ]


def test_the_middle_of_a_long_row_is_left_out() -> None:
    shown = pieces(row("0123456789", "abcdefghi"), ByteTokenizer())
    assert row_text(shown, most=9).plain == "012 … 11 more tokens … «efghi<|end|>»"


def test_shown_rows(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows([row("[b]", "x"), row("q", "y", number=2, cut=True), row("q", "z")], ByteTokenizer(), rows=2)
    assert capsys.readouterr().out == (
        "rows.json, row 1: 5 tokens, 2 trained\n[b]«x<|end|>»\n"
        "rows.json, row 2: 3 tokens, 2 trained, prompt cut\nq«y<|end|>»\n"
    )


def test_secrets_are_dots() -> None:
    """Whatever tokens they fall into: a page of rows is sent to others."""
    secret = "sk-" + "aB3d" * 8
    shown = pieces(row(f"my {secret}. ", "zhen@gong.cn"), ByteTokenizer())
    assert "".join(piece.text for piece in shown) == f"my {'•' * 35}. {'•' * 12}<|end|>"
    assert [piece.trained for piece in shown] == [False] * 40 + [True] * 13
    assert shown[3] == Piece([], [], "•", False)
    assert row_text(shown).plain == f"my·{'•' * 35}.·«{'•' * 12}<|end|>»"
