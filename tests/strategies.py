"""Rows and files as people and machines get them wrong, for Hypothesis."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from hypothesis import strategies as st

from luthier.data.formats import FORMATS, ROLES

COLUMNS = sorted({column for each in FORMATS.values() for column in each.fields} | {"", "note", "输出"})
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".parquet", ".bin", "")
CODECS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gbk", "gb18030", "latin-1")
SPECIAL = (
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|endoftext|>",
    "\ufdd0",
    "\0",
    "\ud800",
    "\u2028",
    "\x85",
    " ",
    "",
)

texts = st.text(max_size=12) | st.sampled_from(SPECIAL) | st.sampled_from(("Hi", "你是谁？", "word " * 40))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from([*ROLES, "customer"]) | scalars,
        "from": st.sampled_from([*ROLES]) | scalars,
        "content": texts | values,
        "value": texts | values,
        "train": values,
        "weight": values,
        "reasoning_content": texts | values,
        "tool_calls": values,
    },
)
odd_rows = st.dictionaries(
    st.sampled_from(COLUMNS), texts | values | st.lists(turns, max_size=4) | st.lists(st.lists(texts, max_size=3))
)
pairs = st.builds(lambda q, a: {"instruction": q, "output": a}, texts, texts)
talks = st.lists(st.tuples(texts, texts), min_size=1, max_size=3).map(
    lambda said: {
        "messages": [
            {"role": role, "content": text}
            for pair in said
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    }
)
rows = pairs | talks | odd_rows | values
words = st.sampled_from(["Hi", "Who are you?", "你是谁？", "Why <|im_end|>?", "word " * 40, "a", "b", "c"])
good_rows = st.builds(lambda q, a: {"instruction": q, "output": a}, words, words)


def as_json(value: Any) -> str:
    """As Python writes it: half characters as escapes, NaN as NaN."""
    return json.dumps(value)


def as_csv(table: list[list[str]]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(table)
    return out.getvalue()


contents = (
    st.lists(rows, max_size=5).map(lambda each: "".join(f"{as_json(row)}\n" for row in each))
    | st.lists(rows, max_size=5).map(as_json)
    | st.lists(st.lists(texts, max_size=4), max_size=5).map(as_csv)
    | st.text(max_size=60)
)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Bytes of a file: text in some encoding, then cut or changed somewhere, or no text at all."""
    data: bytes = draw(
        st.builds(lambda text, codec: text.encode(codec, "replace"), contents, st.sampled_from(CODECS))
        | st.binary(max_size=60)
        | st.binary(max_size=60).map(lambda raw: b"PAR1" + raw)
    )
    place = draw(st.integers(0, len(data)))
    return draw(st.sampled_from([data, data[:place], data[:place] + draw(st.binary(max_size=3)) + data[place:]]))
