"""Data files that cannot be trained on as they are, and what each is told. `FILE` is its path."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from driver import PAIRS

GOOD = [{"instruction": question, "output": answer} for question, answer in PAIRS]
CHINESE = [{"instruction": f"你是谁？{i}", "output": "臣妾甄嬛，见过皇上。"} for i in range(9)]
RESAVE = 'save the file as UTF-8 (Notepad: "Save as", encoding UTF-8; Excel: "CSV UTF-8")'
REWRITE = "write it as text, or delete the row"
LINE = "correct the line or delete it (each line is one whole object)"
ORDER = "user and assistant alternate after one optional system turn: correct or delete the row"
CELLS = "put a cell that holds the separator or a line break in double quotes"
LONG = "word " * 300


def text(rows: Any) -> str:
    return json.dumps(rows, ensure_ascii=False)


def lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else text(row)}\n" for row in rows)


def after_good(*rows: Any) -> str:
    """24 good lines, so that the first of `rows` is line 25."""
    return lines(*GOOD, *rows)


def turns(*pairs: str) -> dict[str, Any]:
    """`user Hi` is a turn."""
    return {"messages": [dict(zip(("role", "content"), pair.split(" ", 1), strict=True)) for pair in pairs]}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


Complaints = Sequence[tuple[str, str]]
REFUSED: dict[str, tuple[str, str | bytes, Complaints]] = {
    "empty file": ("a.jsonl", "", [("FILE: the file is empty", "write or download it again")]),
    "only blanks": ("a.json", " \n\n", [("FILE: the file is empty", "write or download it again")]),
    "empty list": ("a.json", "[]", [("FILE: holds no rows", "check that this is the file you mean")]),
    "truncated JSON": (
        "a.json",
        text(GOOD[:2])[:-20],
        [
            (
                "FILE: not valid JSON at line 1, column 127: Unterminated string starting at; "
                "the file ends in the middle of a row, so it was cut",
                "download or export the file again",
            )
        ],
    ),
    "one broken line": (
        "a.jsonl",
        after_good('{"instruction": "x", "output": '),
        [("FILE, line 25: not valid JSON at column 32: Expecting value", LINE)],
    ),
    "a missing field": (
        "a.jsonl",
        after_good({"instruction": "x"}),
        [("FILE, line 25: has no `output`", "add `output`, or delete the row")],
    ),
    "a null field": (
        "a.json",
        text([*GOOD, {"instruction": "x", "output": None}]),
        [("FILE, row 25: `output` is null, not text", REWRITE)],
    ),
    "an empty field": (
        "a.jsonl",
        after_good({"instruction": "x", "output": ""}),
        [("FILE, line 25: `output` is empty", "fill it in, or delete the row")],
    ),
    "a numeric field": (
        "a.jsonl",
        after_good({"instruction": "x", "output": 5}),
        [("FILE, line 25: `output` is the number 5, not text", REWRITE)],
    ),
    "nested fields": (
        "a.jsonl",
        after_good({"instruction": ["x"], "output": {"text": "y"}}),
        [
            ("FILE, line 25: `instruction` is a list, not text", REWRITE),
            ("FILE, line 25: `output` is an object, not text", REWRITE),
        ],
    ),
    "no number": (
        "a.jsonl",
        after_good('{"instruction": NaN, "output": "y"}'),
        [("FILE, line 25: `instruction` is a number, not text", REWRITE)],
    ),
    "an unknown role": (
        "a.jsonl",
        lines(turns("customer Hi", "assistant Yes")),
        [
            (
                "FILE, line 1: turn 1 has the role 'customer'",
                "use one of system, user, human, assistant, gpt, tool, observation",
            )
        ],
    ),
    "roles in a wrong order": (
        "a.jsonl",
        lines(turns("assistant Hi", "user Yes"), turns("user Hi", "user Hello", "assistant Yes")),
        [
            ("FILE, line 1: turn 1 (assistant) stands first", ORDER),
            (
                "FILE, line 1: the last turn is user, so there is no answer to learn",
                "add the answer, or delete that turn",
            ),
            ("FILE, line 2: turn 2 (user) stands after user", ORDER),
        ],
    ),
    "every answer too long": (
        "a.jsonl",
        lines(*({"instruction": f"{i}", "output": LONG} for i in range(8))),
        [
            (
                "FILE: no row is left to train on (8 of 8: longer than 256 tokens)",
                "raise data.max_length, or set data.too_long: cut_prompt; line 1 has 1,510 tokens",
            )
        ],
    ),
    "every question too long": (
        "a.jsonl",
        lines(*({"instruction": f"{LONG}{i}", "output": "y"} for i in range(8))),
        [
            (
                "FILE: no row is left to train on (8 of 8: longer than 256 tokens)",
                "raise data.max_length, or set data.too_long: cut_prompt; line 2 has 1,511 tokens",
            )
        ],
    ),
    "UTF-16 without its mark": (
        "a.json",
        text(GOOD).encode("utf-16-le"),
        [
            (
                "FILE: looks like UTF-16 without its byte order mark, so which of its two forms it is would be a guess",
                RESAVE,
            )
        ],
    ),
    "a line in GBK among UTF-8": (
        "a.jsonl",
        after_good().encode() + text({"instruction": "你是谁", "output": "我是"}).encode("gbk"),
        [
            (
                "FILE, line 25: byte 18 (0xc4) is not UTF-8, as the rest of the file is",
                "write that character again, and save as UTF-8",
            )
        ],
    ),
    "a line in UTF-8 among GBK": (  # of which GBK would make 浣犲ソ
        "a.jsonl",
        lines(*CHINESE).encode("gbk") + text({"instruction": "你好", "output": "你好"}).encode(),
        [
            (
                "FILE, line 10: is UTF-8, while the rest of the file is GBK",
                "write that line again, and save the whole file as UTF-8",
            )
        ],
    ),
    "NUL bytes": (
        "a.jsonl",
        after_good().encode() + b'{"instruction": "a\0b", "output": "c"}\n',
        [
            (
                "FILE, line 25: holds a NUL character",
                f"the file is damaged, or UTF-16 without its mark: {RESAVE}",
            )
        ],
    ),
    "NUL and half a character, written as escapes": (
        "a.jsonl",
        after_good(
            '{"instruction": "a\\u0000", "output": "c"}',
            '{"instruction": "a", "output": "\\ud800"}',
            '{"instruction": "a", "output": "c", "\\udc00": 1}',
        ),
        [
            (
                f"FILE, line {line}: `{column}` holds half a character (a lone surrogate) or NUL",
                "delete that character: it was damaged when the file was made",
            )
            for line, column in ((25, "instruction"), (26, "output"), (27, "\\udc00"))
        ],
    ),
    "the mark that Luthier uses inside": (
        "a.jsonl",
        after_good({"instruction": "a\ufdd0b", "output": "c"}),
        [
            (
                "FILE, line 25: `instruction` holds U+FDD0, which is not a character of any language",
                "delete that character",
            )
        ],
    ),
    "a number of 5,000 digits": (
        "a.jsonl",
        after_good('{"instruction": 1' + "0" * 5000 + "}"),
        [("FILE, line 25: not valid JSON at column 1: a number has too many digits", LINE)],
    ),
    "lists in lists without end": (
        "a.jsonl",
        after_good('{"instruction": ' + "[" * 100_000),
        [("FILE, line 25: not valid JSON at column 1: lists or objects nest too deep", LINE)],
    ),
    "CSV with another header": (
        "a.csv",
        "frage,antwort\na,b\n",
        [
            (
                "FILE: its columns (frage, antwort) fit no format; the nearest is alpaca, "
                "which needs instruction and output",
                "say in the recipe which column is which: data: {columns: {instruction: YOUR_COLUMN, "
                "output: YOUR_COLUMN}}; the first line of the file must hold the columns' names",
            )
        ],
    ),
    "ragged CSV": (
        "a.csv",
        "instruction,output\na,b\nc,d,e\nf\ng,h\n",
        [
            ("FILE, line 3: 3 cells where the header names 2 columns", CELLS),
            ("FILE, line 4: 1 cell where the header names 2 columns", CELLS),
        ],
    ),
    "CSV with an open quote": (
        "a.csv",
        'instruction,output\na,b\nc,"d\ne,f\n',
        [
            (
                "FILE, line 3: the quotes of this record do not match (unexpected end of data)",
                'close the quote; write a double quote inside a quoted cell twice: ""',
            )
        ],
    ),
    "Parquet with other columns": (
        "a.parquet",
        parquet([{"question": "a", "reply": "b"}]),
        [
            (
                "FILE: its columns (question, reply) fit no format; the nearest is alpaca, "
                "which needs instruction and output",
                "say in the recipe which column is which: data: {columns: {instruction: question, output: reply}}",
            )
        ],
    ),
    "Parquet that was cut": (
        "a.parquet",
        parquet([{"instruction": "a", "output": "b"}])[:-20],
        [
            (
                "FILE: not a whole Parquet file: Parquet magic "
                "bytes not found in footer. Either the file is corrupted or this is not a parquet file.",
                "download or export the file again",
            )
        ],
    ),
    "an Excel workbook": (
        "a.csv",
        b"PK\x03\x04 and so on",
        [
            (
                "FILE: is a zip archive or an Excel workbook, not rows",
                "unpack it, or save the table as CSV UTF-8, and name that file",
            )
        ],
    ),
}
