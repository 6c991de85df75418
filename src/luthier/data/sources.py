"""A file becomes rows, each with its place. The content decides what the file is; its name only helps.

JSON array (also inside an object: `{"data": [...]}`), JSONL, CSV or TSV, Parquet, plain text (documents
separated by blank lines). UTF-8 with or without BOM, UTF-16 and UTF-32 with BOM, GBK and GB18030.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.data.conversation import Source
from luthier.data.encoding import HEAD, Text, parts_of, text_of
from luthier.data.problems import Problems, describe
from luthier.data.store import Stored
from luthier.errors import DataError, Problem

Kind = Literal["json", "jsonl", "csv", "tsv", "parquet", "txt"]
SourcedRow = tuple[Source, dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """What a file held. `encoding` is Python's name of the codec, "binary" for Parquet.

    `dropped`: rows that are none, and why; empty unless that was asked for.
    """

    rows: Sequence[SourcedRow]
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
    start = _first_bytes(path)
    file = str(path)
    kind: Kind = "parquet"
    encoding, sha256 = "binary", ""
    problems = Problems(file, drop)
    rows = stored_rows()
    if start.startswith(b"PAR1"):
        digest = hashlib.sha256()
        for part in parts_of(path):
            digest.update(part)
        sha256, read = digest.hexdigest(), _parquet(path, problems)
    else:
        text = text_of(path)
        encoding, sha256 = text.encoding, text.sha256
        kind, reader = _reader(text, path)
        read = reader(text, problems) if text.head.strip() or text.whole().strip() else iter(())
    for source, row in read:
        if source not in problems.dropped:
            rows.append((source, row))
    problems.raise_any()
    if not rows and not problems.dropped:
        raise DataError(Problem(file, "holds no rows", "check that this is the file you mean"))
    return Rows(rows, kind, encoding, sha256, path, problems.dropped)


def stored_rows() -> Stored[SourcedRow]:
    """Room for rows, however many."""
    return Stored(_pack, _unpack)


def _pack(row: SourcedRow) -> Any:
    source, values = row
    return source.file, source.number, source.unit, values


def _unpack(row: Any) -> SourcedRow:
    file, number, unit, values = row
    return Source(sys.intern(file), number, unit), values


def _first_bytes(path: Path) -> bytes:
    """The first part of the file that holds more than blanks."""
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*") if p.suffix.lower() in READERS or p.suffix == ".parquet")
        fix = f"name one of its files: {', '.join(inside[:8])}" if inside else "name a data file"
        raise DataError(Problem(str(path), "is a folder, not a file", fix))
    try:
        part = next((part for part in parts_of(path) if part.strip(b"\0 \t\r\n")), b"")
    except FileNotFoundError:
        raise DataError(Problem(str(path), "no such file", _near_names(path))) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(Problem(str(path), f"cannot be read: {error}", "check its permissions and name")) from None
    if not part:
        raise DataError(Problem(str(path), "the file is empty", "write or download it again"))
    for magic, what in ARCHIVES.items():
        if part.startswith(magic):
            fix = "unpack it, or save the table as CSV UTF-8, and name that file"
            raise DataError(Problem(str(path), f"is {what}, not rows", fix))
    return part


ARCHIVES = {b"PK\x03\x04": "a zip archive or an Excel workbook", b"\x1f\x8b": "a gzip archive"}


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either: check the path"
    names = [p.name for p in path.parent.glob("*")]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"check the path: nothing in {path.parent} has such a name"


Reader = Callable[[Text, Problems], Iterator[SourcedRow]]
"""A file's text to its rows. What is wrong goes into the problems and reading goes on; DataError where it cannot."""

LOOKS_LIKE_JSON = re.compile(r'\s*(\[\s*[{\]]|\{\s*["}])')
UNSAFE = re.compile("[\ud800-\udfff\0]")
BLANKS = " \t\r\n"
BLANK = re.compile(f"[{BLANKS}]*")
PARQUET_ROWS = 1000  # that are read at once


def _reader(text: Text, path: Path) -> tuple[Kind, Reader]:
    suffix = path.suffix.lower()
    if LOOKS_LIKE_JSON.match(text.head) or suffix in (".json", ".jsonl", ".ndjson"):
        return ("jsonl", _jsonl) if _is_jsonl(text, suffix) else ("json", _json)
    if suffix not in READERS:
        fix = f"give it the suffix that tells what it is: {', '.join(READERS)}, .parquet"
        raise DataError(Problem(str(path), f"cannot tell what a {suffix or 'file without suffix'} holds", fix))
    if suffix == ".csv" and _delimiter(text.head) == "\t":
        return "tsv", _csv
    return READERS[suffix]


def _is_jsonl(text: Text, suffix: str) -> bool:
    """Whether each line is an object of its own. One object over several lines breaks after `{`, `[`, `,` or `:`."""
    head = text.head.lstrip()
    if "\n" not in head and not head.startswith("["):
        head = text.whole().lstrip()
    first, *others = [line.strip() for line in head.split("\n", 2) if line.strip()] or [""]
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


def _json(text: Text, problems: Problems) -> Iterator[SourcedRow]:
    with contextlib.suppress(json.JSONDecodeError):  # what is wrong is said of the whole, by line and column
        for number, row in enumerate(_elements(text), 1):
            yield from _checked(Source(problems.file, number), row, text, problems)
        return
    whole = text.whole()
    try:
        top = _parse(whole)
    except json.JSONDecodeError as error:
        what = f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        fix = "correct that place, or give the file the suffix of what it is"
        if LOOKS_LIKE_JSON.match(whole) and not whole.rstrip().endswith(("]", "}")):
            what += "; the file ends in the middle of a row, so it was cut"
            fix = "download or export the file again"
        raise DataError(Problem(problems.file, what, fix)) from None
    for number, row in enumerate(_rows_of(top, problems.file), 1):
        yield from _checked(Source(problems.file, number), row, text, problems)


def _elements(text: Text) -> Iterator[Any]:
    """Those of a list, with little more than one in memory. JSONDecodeError where it is none, is empty or is broken."""
    with text.open("") as file:
        buffer, at = file.read(HEAD).lstrip(BLANKS), 1
        while buffer.startswith("["):
            found = _element(buffer, at)
            if found is None:  # perhaps not yet whole
                more = file.read(max(HEAD, len(buffer)))
                if not more:
                    break
                buffer, at = "[" + buffer[at:] + more, 1
                continue
            value, at, sign = found
            yield value
            if sign == "]":
                if (buffer[at:] + file.read()).strip(BLANKS):
                    break
                return
    raise json.JSONDecodeError("not a list of values", "", 0)


def _element(buffer: str, at: int) -> tuple[Any, int, str] | None:
    """A value, where the sign behind it ends, and that sign, `,` or `]`. None where they do not stand there."""
    try:
        value, end = DECODER.raw_decode(buffer, BLANK.match(buffer, at).end())  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        return None
    end = BLANK.match(buffer, end).end()  # type: ignore[union-attr]
    sign = buffer[end : end + 1]
    return (value, end + 1, sign) if sign in (",", "]") else None


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


def _jsonl(text: Text, problems: Problems) -> Iterator[SourcedRow]:
    with text.open("\n") as lines:  # not any line end: U+2028 may stand in a JSON string
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            source = Source(problems.file, number, "line")
            try:
                row = _parse(line.removesuffix("\n"))
            except json.JSONDecodeError as error:
                fix = "correct the line or delete it (each line is one whole object)"
                problems.add(source, f"not valid JSON at column {error.pos + 1}: {error.msg}", fix)
                continue
            yield from _checked(source, row, text, problems)


def _checked(source: Source, row: Any, text: Text, problems: Problems) -> Iterator[SourcedRow]:
    """The row, if it is an object with text that can be written as UTF-8; the problems name what is not."""
    if not isinstance(row, dict):
        problems.add(source, f"is {describe(row)}, not an object with columns", "correct the row or delete it")
    elif (key := _repeated_key(row)) is not None:
        problems.add(source, f"`{key}` stands twice in one object", "keep the one that is meant")
    elif text.escapes and (column := _unsafe_column(row)) is not None:
        what = f"`{column}` holds half a character (a lone surrogate) or NUL"
        problems.add(source, what, "delete that character: it was damaged when the file was made")
    else:
        yield source, row


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


def _csv(text: Text, problems: Problems) -> Iterator[SourcedRow]:
    lines = _csv_lines(text, _delimiter(text.head), problems)
    place, header = next(lines, (Source(problems.file, 1, "line"), []))
    header = [name.strip() for name in header]
    for name in sorted({name for name in header if header.count(name) > 1}):
        problems.add(str(place), f"two columns are named {name!r}", "give each column its own name")
    source = None
    for source, cells in lines:
        if len(cells) != len(header):
            what = f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'} where the header names {len(header)} columns"
            problems.add(source, what, "put a cell that holds the separator or a line break in double quotes")
        yield source, dict(zip(header, cells, strict=False))
    if header and source is None and not problems.listed:
        problems.add(problems.file, "holds a header line but no rows", "check that this is the file you mean")


def _csv_lines(text: Text, delimiter: str, problems: Problems) -> Iterator[tuple[Source, list[str]]]:
    """Each record with the line on which it begins. After a broken quote nothing can be told apart: it ends there."""
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses a document of more than 131,072 characters
    try:
        with text.open("") as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
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


def _txt(text: Text, problems: Problems) -> Iterator[SourcedRow]:
    """Documents are separated by blank lines. Each is a row with the column `text`."""
    document: list[str] = []
    start = 1
    with text.open("\n") as lines:
        for number, line in enumerate(itertools.chain(lines, [""]), 1):
            if line.strip():
                start = start if document else number
                document.append(line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line)
            elif document:
                yield Source(problems.file, start, "line"), {"text": "\n".join(document)}
                document = []


def _parquet(path: Path, problems: Problems) -> Iterator[SourcedRow]:
    import pyarrow
    import pyarrow.parquet

    numbers = itertools.count(1)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for batch in file.iter_batches(PARQUET_ROWS):
                for number, row in zip(numbers, batch.to_pylist(), strict=False):
                    source = Source(problems.file, number)
                    if (column := _unsafe_column(row)) is not None:
                        problems.add(source, f"`{column}` holds a NUL character", "delete that character")
                    yield source, row
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        what = f"not a whole Parquet file: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise DataError(Problem(problems.file, what, "download or export the file again")) from None
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(problems.file, f"two columns are named {name!r}", "give each column its own name")


READERS: dict[str, tuple[Kind, Reader]] = {
    ".json": ("json", _json),
    ".jsonl": ("jsonl", _jsonl),
    ".ndjson": ("jsonl", _jsonl),
    ".csv": ("csv", _csv),
    ".tsv": ("tsv", _csv),
    ".txt": ("txt", _txt),
    ".md": ("txt", _txt),
}
