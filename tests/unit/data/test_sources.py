from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from luthier.data.conversation import Source
from luthier.data.sources import read_rows
from luthier.errors import DataError

ROWS = [{"instruction": "你是谁？", "output": "臣妾甄嬛，见过皇上。"}, {"instruction": "天气好吗", "output": "是的"}]
JSON = json.dumps(ROWS, ensure_ascii=False)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, name: str, content: str | bytes) -> list[tuple[int, str, dict[str, Any]]]:
    return [(s.number, s.unit, row) for s, row in read_rows(write(folder, name, content)).rows]


def problems(folder: Path, name: str, content: str | bytes) -> list[tuple[str, str, str]]:
    """Of the DataError that the file must raise: place without the folder, what, fix."""
    with pytest.raises(DataError) as caught:
        read_rows(write(folder, name, content))
    return [(p.where.replace(str(folder / name), name), p.what, p.fix) for p in caught.value.problems]


# ------------------------------------------------------------------- kinds


def test_a_json_array(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.json", JSON)
    rows = read_rows(path)
    assert list(rows.rows) == [(Source(str(path), 1), ROWS[0]), (Source(str(path), 2), ROWS[1])]
    assert (rows.kind, rows.encoding, rows.path) == ("json", "utf-8", path)
    assert rows.sha256 == hashlib.sha256(JSON.encode()).hexdigest()


@pytest.mark.parametrize("text", ['{"data": %s}', '{"version": "1",\n"data": %s,\n"n": 3}', '{"data": [\n%s\n]}'])
def test_a_list_inside_an_object(tmp_path: Path, text: str) -> None:
    inner = JSON[1:-1].replace("}, {", "},\n{") if "[" in text else JSON
    assert read(tmp_path, "rows.json", text % inner) == [(1, "row", ROWS[0]), (2, "row", ROWS[1])]


def test_jsonl_counts_lines_and_skips_blank_ones(tmp_path: Path) -> None:
    text = '{"a": "x\u2028y"}\r\n\n  \n{"a": 2}\n'
    assert read(tmp_path, "rows.jsonl", text) == [(1, "line", {"a": "x\u2028y"}), (4, "line", {"a": 2})]


@pytest.mark.parametrize("name", ["rows.json", "rows.txt", "rows.csv", "rows"])
def test_the_content_decides_not_the_suffix(tmp_path: Path, name: str) -> None:
    assert read_rows(write(tmp_path, name, '{"a": 1}\n{"a": 2}')).kind == "jsonl"
    assert read_rows(write(tmp_path, name, '[{"a": 1}]')).kind == "json"


def test_a_jsonl_file_that_holds_an_array(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path, "rows.jsonl", '[\n{"a": 1},\n{"a": 2}\n]')).kind == "json"


def test_one_line_of_jsonl_is_a_row_even_when_it_holds_a_list(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "x"}]}
    assert read(tmp_path, "rows.jsonl", json.dumps(row)) == [(1, "line", row)]


def test_csv_counts_the_line_on_which_a_record_begins(tmp_path: Path) -> None:
    text = 'instruction, output\n"two\nlines","say ""hi"""\n\nplain,x\n'
    assert read(tmp_path, "rows.csv", text) == [
        (2, "line", {"instruction": "two\nlines", "output": 'say "hi"'}),
        (5, "line", {"instruction": "plain", "output": "x"}),
    ]


@pytest.mark.parametrize(("separator", "kind"), [(",", "csv"), (";", "csv"), ("\t", "tsv")])
def test_the_separator_is_read_from_the_header(tmp_path: Path, separator: str, kind: str) -> None:
    rows = read_rows(write(tmp_path, "rows.csv", f"a{separator}b\n1{separator}2\n"))
    assert (rows.kind, rows.rows[0][1]) == (kind, {"a": "1", "b": "2"})
    assert read_rows(write(tmp_path, "rows.tsv", "a\tb\n1\t2\n")).kind == "tsv"


def test_a_cell_longer_than_the_csv_module_allows_by_default(tmp_path: Path) -> None:
    assert read(tmp_path, "rows.csv", "text\n" + "x" * 200_000) == [(2, "line", {"text": "x" * 200_000})]


def test_documents_of_a_text_file_are_separated_by_blank_lines(tmp_path: Path) -> None:
    text = "\nfirst line\r\nsecond line\n \n\nanother\n"
    assert read(tmp_path, "book.txt", text) == [
        (2, "line", {"text": "first line\nsecond line"}),
        (6, "line", {"text": "another"}),
    ]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [{"role": "user", "content": "你好"}], "id": 1}, {"messages": [], "id": None}]
    path = tmp_path / "rows.bin"  # known by its content
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = read_rows(path)
    assert list(found.rows) == [(Source(str(path), 1), rows[0]), (Source(str(path), 2), rows[1])]
    assert (found.kind, found.encoding) == ("parquet", "binary")


# ---------------------------------------------------------------- encodings


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (JSON.encode("utf-8-sig"), "utf-8-sig"),
        (b"\xff\xfe" + JSON.encode("utf-16-le"), "utf-16-le"),
        (b"\xfe\xff" + JSON.encode("utf-16-be"), "utf-16-be"),
        (b"\xff\xfe\0\0" + JSON.encode("utf-32-le"), "utf-32-le"),
        (JSON.encode("gbk"), "gbk"),
        (JSON.replace("}, {", ', "x": "😀"}, {').encode("gb18030"), "gb18030"),
    ],
)
def test_encodings_are_recognised_and_reported(tmp_path: Path, data: bytes, encoding: str) -> None:
    rows = read_rows(write(tmp_path, "rows.json", data))
    assert rows.encoding == encoding
    assert [row["output"] for _, row in rows.rows] == ["臣妾甄嬛，见过皇上。", "是的"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("臺灣的天氣很好，我們一起去學校學習吧，這個世界是美麗的", "big5"),
        ("안녕하세요 저는 한국 사람입니다 오늘 날씨가 좋습니다", "euc-kr"),
        ("私は日本の学生です。今日は天気がいいです。人々は大きい", "euc-jp"),
        ("私は日本の学生です。今日は天気がいいです", "shift-jis"),
        ("Le café où Gérard à mangé déjà", "cp1252"),
    ],
)
def test_another_encoding_is_refused_rather_than_guessed(tmp_path: Path, text: str, encoding: str) -> None:
    [(where, what, fix)] = problems(tmp_path, "rows.txt", b"plain\n" + text.encode(encoding))
    assert where == "rows.txt, line 2"
    assert what == "from here on the text is neither UTF-8 nor plainly GBK, and no byte order mark says what it is"
    assert fix == 'save the file as UTF-8 (Notepad: "Save as", encoding UTF-8; Excel: "CSV UTF-8")'


def test_each_line_with_a_broken_character_is_named(tmp_path: Path) -> None:
    data = "这是一\n这是二\n这是三\n".encode()
    broken = data.replace("一".encode(), b"\xe4\xb8").replace("三".encode(), b"\xff")
    assert problems(tmp_path, "rows.txt", broken) == [
        (f"rows.txt, line {line}", f"byte 7 ({byte}) is not UTF-8, as the rest of the file is", fix)
        for line, byte in ((1, "0xe4"), (3, "0xff"))
        for fix in ["write that character again, and save as UTF-8"]
    ]


def test_bytes_that_break_the_encoding_their_mark_promises(tmp_path: Path) -> None:
    [(where, what, _)] = problems(tmp_path, "rows.json", b"\xff\xfe" + "a\nb".encode("utf-16-le") + b"\0\xd8")
    assert where == "rows.json, line 2"
    assert what.startswith("its byte order mark says utf-16-le, but the bytes break that encoding")


# ------------------------------------------------------------ what is wrong


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "huanhuan.json", JSON)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "huanhaun.json")
    assert str(caught.value) == f"{tmp_path / 'huanhaun.json'}: no such file\n  fix: did you mean huanhuan.json?"
    with pytest.raises(DataError, match="there is no folder"):
        read_rows(tmp_path / "nowhere" / "x.json")


def test_a_folder_names_its_files(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "")
    write(tmp_path, "a.parquet", "")
    write(tmp_path, "c.py", "")
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path)
    assert caught.value.problems[0].what == "is a folder, not a file"
    assert caught.value.problems[0].fix == "name one of its files: a.parquet, b.jsonl"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("rows.json", "", "the file is empty"),
        ("rows.csv", b"\xef\xbb\xbf", "holds no rows"),
        ("rows.jsonl", " \n\n", "the file is empty"),
        ("rows.json", "[]", "holds no rows"),
        ("rows.json", '{"data": []}', "holds no rows"),
        ("rows.csv", "instruction,output\n", "holds a header line but no rows"),
        ("rows.xlsx", b"PK\x03\x04....", "is a zip archive or an Excel workbook, not rows"),
        ("rows.dat", "hello", "cannot tell what a .dat holds"),
        ("rows.json", '"text"', "the top level is text, not a list of rows"),
        ("rows.json", '{"a": 1}', "the top level is an object, not a list of rows (its keys: a)"),
        ("rows.json", '{"a": [], "a": []}', "`a` stands twice in the object around the rows"),
        (
            "rows.json",
            '{"messages": [{"role": "user", "content": "Hi"}]}',
            "the top level is an object, not a list of rows (its keys: messages)",
        ),
    ],
)
def test_a_file_without_rows(tmp_path: Path, name: str, content: str | bytes, what: str) -> None:
    assert [(where, found) for where, found, _ in problems(tmp_path, name, content)] == [(name, what)]


def test_truncated_json_names_line_and_column(tmp_path: Path) -> None:
    [(where, what, fix)] = problems(tmp_path, "rows.json", '[\n  {"a": "b"},\n  {"a": "c')
    assert where == "rows.json"
    assert what.startswith("not valid JSON at line 3, column 9: Unterminated string starting at")
    assert what.endswith("; the file ends in the middle of a row, so it was cut")
    assert fix == "download or export the file again"


def test_every_broken_line_of_jsonl_is_named(tmp_path: Path) -> None:
    text = '{"a": 1}\n{"a": }\n[1]\nnull\n{"a": 1, "a": 2}\n{"a": {"b": 1, "b": 2}}\n{"a": "\\ud800"}\n{"a": "cut'
    assert [(where, what) for where, what, _ in problems(tmp_path, "rows.jsonl", text)] == [
        ("rows.jsonl, line 2", "not valid JSON at column 7: Expecting value"),
        ("rows.jsonl, line 3", "is a list, not an object with columns"),
        ("rows.jsonl, line 4", "is null, not an object with columns"),
        ("rows.jsonl, line 5", "`a` stands twice in one object"),
        ("rows.jsonl, line 6", "`b` stands twice in one object"),
        ("rows.jsonl, line 7", "`a` holds half a character (a lone surrogate) or NUL"),
        ("rows.jsonl, line 8", "not valid JSON at column 7: Unterminated string starting at"),
    ]


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    assert read(tmp_path, "rows.jsonl", '{"a": "\\ud83d\\ude00"}') == [(1, "line", {"a": "😀"})]


def test_ragged_and_broken_csv(tmp_path: Path) -> None:
    assert problems(tmp_path, "rows.csv", 'a,b,a\n"x\ny",2\n1,2,3\n1,2,3,4\n5,"6\n7,8,9\n') == [
        ("rows.csv, line 1", "two columns are named 'a'", "give each column its own name"),
        *[
            (
                f"rows.csv, line {line}",
                f"{cells} cells where the header names 3 columns",
                "put a cell that holds the separator or a line break in double quotes",
            )
            for line, cells in ((2, 2), (5, 4))
        ],
        (
            "rows.csv, line 6",
            "the quotes of this record do not match (unexpected end of data)",
            'close the quote; write a double quote inside a quoted cell twice: ""',
        ),
    ]


def test_nul_characters_are_named_by_line(tmp_path: Path) -> None:
    found = problems(tmp_path, "rows.csv", b"a,b\n1,2\n1,\x002\n")
    assert [(where, what) for where, what, _ in found] == [("rows.csv, line 3", "holds a NUL character")]


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    [(where, what, fix)] = problems(tmp_path, "rows.parquet", b"PAR1 and then nothing")
    assert (where, fix) == ("rows.parquet", "download or export the file again")
    assert what.startswith("not a whole Parquet file: ")


def test_twenty_problems_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    found = problems(tmp_path, "rows.jsonl", "{\n" * 1234)
    assert [where for where, _, _ in found] == [f"rows.jsonl, line {i}" for i in range(1, 21)] + ["rows.jsonl"]
    assert found[-1][1:] == ("1,214 more problems like these", "correct those above first")


# --------------------------------------------------------------- any bytes

BEGINNINGS = [b"", b"[{", b'{"a": ', b"a,b\n", b"PAR1", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"[[[[" * 30_000]


@given(
    beginning=st.sampled_from(BEGINNINGS),
    rest=st.binary(max_size=60),
    suffix=st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ""]),
)
@example(beginning=b"", rest=b"[" + b"1" * 5000 + b"]", suffix=".json")
@example(beginning=b"", rest=b"[[" * 50_000, suffix=".json")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_rows_or_a_data_error(tmp_path: Path, beginning: bytes, rest: bytes, suffix: str) -> None:
    path = write(tmp_path, f"rows{suffix}", beginning + rest)
    try:
        rows = read_rows(path).rows
    except DataError as error:
        assert all(p.where.startswith(str(path)) and p.what and p.fix for p in error.problems)
    else:
        assert rows and all(isinstance(row, dict) and source.file == str(path) for source, row in rows)
