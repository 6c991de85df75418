"""A file becomes rows, each with its place. The content decides what the file is; its name only helps.

JSON array (also inside an object: `{"data": [...]}`), JSONL, CSV or TSV, Parquet, plain text (documents
separated by blank lines). UTF-8 with or without BOM, UTF-16 and UTF-32 with BOM, GBK and GB18030.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.data.conversation import Source
from luthier.data.encoding import decode
from luthier.data.problems import Problems, describe
from luthier.errors import DataError, Problem

Kind = Literal["json", "jsonl", "csv", "tsv", "parquet", "txt"]
SourcedRow = tuple[Source, dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """What a file held. `encoding` is Python's name of the codec, "binary" for Parquet.

    `dropped`: rows that are none, and why; empty unless that was asked for.
    """

    rows: list[SourcedRow]
    kind: Kind
    encoding: str
    sha256: str
    path: Path
    dropped: dict[Source, str] = field(default_factory=dict)


def read_rows(path: Path, *, drop: bool = False) -> Rows:
    """Every row of a file, in order.

    Raises DataError with all problems of the file: each names the file, the row or line, and what to do.
    A file with one broken row is refused; with `drop` that row is left out and named in `dropped`.
    """
    data = _read_bytes(path)
    sha256 = hashlib.sha256(data).hexdigest()
    file = str(path)
    kind: Kind = "parquet"
    encoding = "binary"
    problems = Problems(file, drop)
    if data.startswith(b"PAR1"):
        rows = _parquet(data, problems)
    else:
        text, encoding = decode(data, file)
        del data  # of a large file, one copy is enough
        kind, read = _reader(text, path)
        rows = read(text, problems) if text.strip() else []
    problems.raise_any()
    if not rows and not problems.dropped:
        raise DataError(Problem(file, "holds no rows", "check that this is the file you mean"))
    rows = [row for row in rows if row[0] not in problems.dropped] if problems.dropped else rows
    return Rows(rows, kind, encoding, sha256, path, problems.dropped)


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*") if p.suffix.lower() in READERS or p.suffix == ".parquet")
        fix = f"name one of its files: {', '.join(inside[:8])}" if inside else "name a data file"
        raise DataError(Problem(str(path), "is a folder, not a file", fix))
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(Problem(str(path), "no such file", _near_names(path))) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(Problem(str(path), f"cannot be read: {error}", "check its permissions and name")) from None
    if not data.strip(b"\0 \t\r\n"):
        raise DataError(Problem(str(path), "the file is empty", "write or download it again"))
    for magic, what in ARCHIVES.items():
        if data.startswith(magic):
            fix = "unpack it, or save the table as CSV UTF-8, and name that file"
            raise DataError(Problem(str(path), f"is {what}, not rows", fix))
    return data


ARCHIVES = {b"PK\x03\x04": "a zip archive or an Excel workbook", b"\x1f\x8b": "a gzip archive"}


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either: check the path"
    names = [p.name for p in path.parent.glob("*")]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"check the path: nothing in {path.parent} has such a name"


Reader = Callable[[str, Problems], list[SourcedRow]]
"""A file's text to its rows. What is wrong goes into the problems and reading goes on; DataError where it cannot."""

LOOKS_LIKE_JSON = re.compile(r'\s*(\[\s*[{\]]|\{\s*["}])')
UNSAFE = re.compile("[\ud800-\udfff\0]")
UNSAFE_ESCAPE = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")


def _reader(text: str, path: Path) -> tuple[Kind, Reader]:
    suffix = path.suffix.lower()
    if LOOKS_LIKE_JSON.match(text) or suffix in (".json", ".jsonl", ".ndjson"):
        return ("jsonl", _jsonl) if _is_jsonl(text, suffix) else ("json", _json)
    if suffix not in READERS:
        fix = f"give it the suffix that tells what it is: {', '.join(READERS)}, .parquet"
        raise DataError(Problem(str(path), f"cannot tell what a {suffix or 'file without suffix'} holds", fix))
    if suffix == ".csv" and _delimiter(text) == "\t":
        return "tsv", _csv
    return READERS[suffix]


def _is_jsonl(text: str, suffix: str) -> bool:
    """Whether each line is an object of its own. One object over several lines breaks after `{`, `[`, `,` or `:`."""
    first, *others = [line.strip() for line in text.lstrip().split("\n", 2) if line.strip()] or [""]
    if first.startswith("["):
        return False
    return suffix in (".jsonl", ".ndjson") or (bool(others) and not first.endswith(("{", "[", ",", ":")))


class _Repeated(dict[str, Any]):
    """An object in which a key stands twice: the first value of it is lost."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    repeated = _Repeated(row)
    repeated.key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return repeated


DECODER = json.JSONDecoder(object_pairs_hook=_object)  # json.loads would make one anew for each line


def _parse(text: str) -> Any:
    """`json.loads` whose every failure is a JSONDecodeError (also too deep nesting and too long numbers)."""
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("lists or objects nest too deep", text, 0) from None
    except ValueError:
        raise json.JSONDecodeError("a number has too many digits", text, 0) from None


def _json(text: str, problems: Problems) -> list[SourcedRow]:
    file = problems.file
    try:
        top = _parse(text)
    except json.JSONDecodeError as error:
        what = f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        if LOOKS_LIKE_JSON.match(text) and not text.rstrip().endswith(("]", "}")):
            what += "; the file ends in the middle of a row, so it was cut"
            raise DataError(Problem(file, what, "download or export the file again")) from None
        raise DataError(Problem(file, what, "correct that place, or give the file the suffix of what it is")) from None
    rows = ((Source(file, number), row) for number, row in enumerate(_rows_of(top, file), 1))
    return _checked(rows, text, problems)


def _rows_of(top: Any, file: str) -> list[Any]:
    """The list itself, or the only list of objects inside an object."""
    if isinstance(top, list):
        return top
    if isinstance(top, _Repeated):
        raise DataError(Problem(file, f"`{top.key}` stands twice in the object around the rows", "join the two lists"))
    lists = [v for v in top.values() if isinstance(v, list)] if isinstance(top, dict) else []
    if len(lists) == 1 and not any(map(_is_turn, lists[0])):
        return lists[0]
    what = f"the top level is {describe(top)}, not a list of rows"
    if isinstance(top, dict):
        what += f" (its keys: {', '.join(list(top)[:8])})"
    raise DataError(Problem(file, what, 'write the rows as [{"…": …}, …], or one object a line'))


def _is_turn(item: Any) -> bool:
    """Whether a list of such items is one conversation, not rows."""
    return isinstance(item, dict) and ({"role", "content"} <= item.keys() or {"from", "value"} <= item.keys())


def _jsonl(text: str, problems: Problems) -> list[SourcedRow]:
    return _checked(_lines(text, problems), text, problems)


def _split(text: str) -> Iterator[str]:
    """Line by line, to have no second copy of a large file. Not splitlines(): U+2028 may stand in a JSON string."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _lines(text: str, problems: Problems) -> Iterator[tuple[Source, Any]]:
    for number, line in enumerate(_split(text), 1):
        if line and not line.isspace():
            source = Source(problems.file, number, "line")
            try:
                yield source, _parse(line)
            except json.JSONDecodeError as error:
                fix = "correct the line or delete it (each line is one whole object)"
                problems.add(source, f"not valid JSON at column {error.pos + 1}: {error.msg}", fix)


def _checked(rows: Iterator[tuple[Source, Any]], text: str, problems: Problems) -> list[SourcedRow]:
    """Rows, each an object with text that can be written as UTF-8; the problems name all that are not."""
    kept = []
    escapes = UNSAFE_ESCAPE.search(text)
    for source, row in rows:
        if not isinstance(row, dict):
            problems.add(source, f"is {describe(row)}, not an object with columns", "correct the row or delete it")
        elif (key := _repeated_key(row)) is not None:
            problems.add(source, f"`{key}` stands twice in one object", "keep the one that is meant")
        elif escapes and (column := _unsafe_column(row)) is not None:
            what = f"`{column}` holds half a character (a lone surrogate) or NUL"
            problems.add(source, what, "delete that character: it was damaged when the file was made")
        kept.append((source, row))
    return kept


def _repeated_key(row: dict[str, Any]) -> str | None:
    """A key that stands twice in a row, or in a turn of it."""
    objects = [row, *row.values(), *(item for value in row.values() if isinstance(value, list) for item in value)]
    return next((item.key for item in objects if isinstance(item, _Repeated)), None)


def _unsafe_column(row: dict[str, Any]) -> str | None:
    for column, value in row.items():
        if any(UNSAFE.search(text) for text in _texts([column, value])):
            return column.encode("utf-8", "backslashreplace").decode()
    return None


def _texts(value: Any) -> Iterator[str]:
    """Every string in a nested value. A stack of its own: data may nest deeper than Python's calls."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            stack += item


def _delimiter(text: str) -> str:
    header = text.lstrip().split("\n", 1)[0]
    return max(",", "\t", ";", key=header.count)  # the comma wins where none occurs


def _csv(text: str, problems: Problems) -> list[SourcedRow]:
    lines = _csv_lines(text, _delimiter(text), problems)
    place, header = next(lines, (Source(problems.file, 1, "line"), []))
    header = [name.strip() for name in header]
    for name in sorted({name for name in header if header.count(name) > 1}):
        problems.add(str(place), f"two columns are named {name!r}", "give each column its own name")
    rows = []
    for source, cells in lines:
        if len(cells) != len(header):
            what = f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'} where the header names {len(header)} columns"
            problems.add(source, what, "put a cell that holds the separator or a line break in double quotes")
        rows.append((source, dict(zip(header, cells, strict=False))))
    if header and not rows and not problems.listed:
        problems.add(problems.file, "holds a header line but no rows", "check that this is the file you mean")
    return rows


def _csv_lines(text: str, delimiter: str, problems: Problems) -> Iterator[tuple[Source, list[str]]]:
    """Each record with the line on which it begins. After a broken quote nothing can be told apart: it ends there."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses a document of more than 131,072 characters
    try:
        while True:
            source = Source(problems.file, reader.line_num + 1, "line")
            cells = next(reader, None)
            if cells is None:
                return
            if cells:
                yield source, cells
    except csv.Error as error:
        fix = 'close the quote; write a double quote inside a quoted cell twice: ""'
        problems.add(str(source), f"the quotes of this record do not match ({error})", fix)
    finally:
        csv.field_size_limit(limit)


def _txt(text: str, problems: Problems) -> list[SourcedRow]:
    """Documents are separated by blank lines. Each is a row with the column `text`."""
    rows: list[SourcedRow] = []
    document: list[str] = []
    start = 1
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        if line.strip():
            start = start if document else number
            document.append(line)
        elif document:
            rows.append((Source(problems.file, start, "line"), {"text": "\n".join(document)}))
            document = []
    return rows


def _parquet(data: bytes, problems: Problems) -> list[SourcedRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        names, records = table.column_names, table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        what = f"not a whole Parquet file: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise DataError(Problem(problems.file, what, "download or export the file again")) from None
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(problems.file, f"two columns are named {name!r}", "give each column its own name")
    rows = [(Source(problems.file, i), row) for i, row in enumerate(records, 1)]
    for source, row in rows:
        if (column := _unsafe_column(row)) is not None:
            problems.add(source, f"`{column}` holds a NUL character", "delete that character")
    return rows


READERS: dict[str, tuple[Kind, Reader]] = {
    ".json": ("json", _json),
    ".jsonl": ("jsonl", _jsonl),
    ".ndjson": ("jsonl", _jsonl),
    ".csv": ("csv", _csv),
    ".tsv": ("tsv", _csv),
    ".txt": ("txt", _txt),
    ".md": ("txt", _txt),
}
