"""A file becomes rows, each with its place. The content decides what the file is; its name only helps.

JSON array (also inside an object: `{"data": [...]}`), JSONL, CSV or TSV, Parquet, plain text (documents
separated by blank lines). UTF-8 with or without BOM, UTF-16 and UTF-32 with BOM, GBK and GB18030.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.data.conversation import Source
from luthier.errors import DataError, Problem

Kind = Literal["json", "jsonl", "csv", "tsv", "parquet", "txt"]
SourcedRow = tuple[Source, dict[str, Any]]

PROBLEMS_LISTED = 20
RESAVE = 'save the file as UTF-8 (Notepad: "Save as", encoding UTF-8; Excel: "CSV UTF-8")'


@dataclass(frozen=True)
class Rows:
    """What a file held. `encoding` is Python's name of the codec, "binary" for Parquet."""

    rows: list[SourcedRow]
    kind: Kind
    encoding: str
    sha256: str
    path: Path


@dataclass
class Problems:
    """All problems of one file: the first ones in full, the others as a number."""

    file: str
    listed: list[Problem] = field(default_factory=list)
    more: int = 0

    def add(self, where: object, what: str, fix: str) -> None:
        if len(self.listed) < PROBLEMS_LISTED:
            self.listed.append(Problem(str(where), what, fix))
        else:
            self.more += 1

    def raise_any(self) -> None:
        """Raise DataError if anything was added."""
        if self.listed:
            raise self.error()

    def error(self) -> DataError:
        rest = Problem(self.file, f"{self.more:,} more problems like these", "correct those above first")
        return DataError(*self.listed, *([rest] if self.more else []))


def read_rows(path: Path) -> Rows:
    """Every row of a file, in order.

    Raises DataError with all problems of the file: each names the file, the row or line, and what to do.
    Nothing is skipped: a file with one broken row is refused.
    """
    data = _read_bytes(path)
    file = str(path)
    if data.startswith(b"PAR1"):
        rows, kind, encoding = _parquet(data, file), "parquet", "binary"
    else:
        text, encoding = decode(data, file)
        kind, read = _reader(text, path)
        rows = read(text, file)
    if not rows:
        raise DataError(Problem(file, "holds no rows", "check that this is the file you mean"))
    return Rows(rows, kind, encoding, hashlib.sha256(data).hexdigest(), path)  # type: ignore[arg-type]


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in READERS or p.suffix == ".parquet")
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
    names = [p.name for p in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"check the path: nothing in {path.parent} has such a name"


# ---------------------------------------------------------------- bytes to text

BOMS = {  # UTF-32's little-endian mark begins with UTF-16's, so it comes first
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Half of any running Chinese text consists of these. Text of another encoding, read as GBK, has about one in twenty.
FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小"
    "部其些主样理心她本前开但因只从想实日者意无力它与长把机十第此使情明性知全三又关点正外将两高间由问很最重并物手应向头文体美相见被什二等或新己制身果加西话合回特信表化老给"
    "世位次门任常先教儿原声提立及比员解水名真论处走各入几口认条平系气题活更别打女变神总何数安少才结反受目太再感做接必场件吗呢吧呀请谁皇"
)


def decode(data: bytes, file: str) -> tuple[str, str]:
    """Text and codec of a file's bytes. Raises DataError where the encoding is broken or open to doubt."""
    for mark, codec in BOMS.items():
        if data.startswith(mark):
            text = _decode_strictly(data[len(mark) :], codec, file)
            break
    else:
        text, codec = _decode_unmarked(data, file)
    if "\0" in text:
        problems = Problems(file)
        for number, line in enumerate(text.split("\n"), 1):
            if "\0" in line:
                fix = f"the file is damaged, or UTF-16 without its mark: {RESAVE}"
                problems.add(Source(file, number, "line"), "holds a NUL character", fix)
        problems.raise_any()
    return text, codec


def _decode_unmarked(data: bytes, file: str) -> tuple[str, str]:
    """UTF-8, else GBK or GB18030 if what comes out is Chinese beyond doubt."""
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError as error:
        first = data.count(b"\n", 0, error.start) + 1
    loose = data.decode(errors="replace")
    broken = loose.count("\ufffd")
    if sum(not c.isascii() for c in loose) >= 2 * broken:  # more whole characters than broken ones
        raise _broken_lines(data, file).error()
    for codec in ("gbk", "gb18030"):
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        if _is_chinese(text[:1_000_000]):
            return text, codec
    what = "from here on the text is neither UTF-8 nor plainly GBK, and no byte order mark says what it is"
    raise DataError(Problem(str(Source(file, first, "line")), what, RESAVE))


def _broken_lines(data: bytes, file: str) -> Problems:
    problems = Problems(file)
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            what = f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8, as the rest of the file is"
            problems.add(Source(file, number, "line"), what, "write that character again, and save as UTF-8")
    return problems


def _is_chinese(text: str) -> bool:
    han = [c for c in text if "\u4e00" <= c <= "\u9fff"]
    return sum(c in FREQUENT for c in han) > 0.2 * len(han)


def _decode_strictly(data: bytes, codec: str, file: str) -> str:
    try:
        return data.decode(codec.removesuffix("-sig"))
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(codec.removesuffix("-sig"), errors="replace").count("\n") + 1
        what = f"its byte order mark says {codec}, but the bytes break that encoding ({error.reason})"
        raise DataError(Problem(str(Source(file, line, "line")), what, RESAVE)) from None


# ---------------------------------------------------------------- text to rows

Reader = Callable[[str, str], list[SourcedRow]]
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


def _parse(text: str) -> Any:
    """`json.loads` whose every failure is a JSONDecodeError (also too deep nesting and too long numbers)."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), text, 0) from None


def _json(text: str, file: str) -> list[SourcedRow]:
    try:
        top = _parse(text)
    except json.JSONDecodeError as error:
        cut = "" if text.rstrip().endswith(("]", "}")) else "; the file ends in the middle, so it was probably cut"
        what = f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}{cut}"
        fix = "download or export the file again" if cut else "correct that place"
        raise DataError(Problem(file, what, fix)) from None
    return _checked(((Source(file, i), row) for i, row in enumerate(_rows_of(top, file), 1)), text, file)


def _rows_of(top: Any, file: str) -> list[Any]:
    """The list itself, or the only list of objects inside an object."""
    if isinstance(top, list):
        return top
    lists = [v for v in top.values() if isinstance(v, list)] if isinstance(top, dict) else []
    if len(lists) == 1 and not any(isinstance(item, dict) and item.keys() & {"role", "from"} for item in lists[0]):
        return lists[0]
    what = f"the top level is {describe(top)}, not a list of rows"
    if isinstance(top, dict):
        what += f" (its keys: {', '.join(list(top)[:8])})"
    raise DataError(Problem(file, what, 'write the rows as [{"…": …}, …], or one object a line'))


def _jsonl(text: str, file: str) -> list[SourcedRow]:
    problems = Problems(file)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): U+2028 may stand in a JSON string
        if line and not line.isspace():
            source = Source(file, number, "line")
            try:
                rows.append((source, _parse(line)))
            except json.JSONDecodeError as error:
                fix = "correct the line or delete it (each line is one whole object)"
                problems.add(source, f"not valid JSON at column {error.pos + 1}: {error.msg}", fix)
    return _checked(iter(rows), text, file, problems)


def _checked(
    rows: Iterator[tuple[Source, Any]], text: str, file: str, problems: Problems | None = None
) -> list[SourcedRow]:
    """Rows that are objects, with text that can be written as UTF-8. Raises DataError naming all that are not."""
    problems = problems or Problems(file)
    kept = []
    escapes = UNSAFE_ESCAPE.search(text)
    for source, row in rows:
        if not isinstance(row, dict):
            problems.add(source, f"is {describe(row)}, not an object with columns", "correct the row or delete it")
        elif escapes and (column := _unsafe_column(row)) is not None:
            what = f"`{column}` holds half a character (a lone surrogate) or NUL"
            problems.add(source, what, "delete that character: it was damaged when the file was made")
        kept.append((source, row))
    problems.raise_any()
    return kept


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


def describe(value: Any) -> str:
    """A JSON value in words: `the number 5`, `a list`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value:.6g}" if abs(value) < 1e300 else "a number"
    kinds: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _delimiter(text: str) -> str:
    header = text.lstrip().split("\n", 1)[0]
    return max(",", "\t", ";", key=header.count)  # the comma wins where none occurs


def _csv(text: str, file: str) -> list[SourcedRow]:
    problems = Problems(file)
    lines = _csv_lines(text, _delimiter(text), file, problems)
    place, header = next(lines, (Source(file, 1, "line"), []))
    header = [name.strip() for name in header]
    for name in sorted({name for name in header if header.count(name) > 1}):
        problems.add(place, f"two columns are named {name!r}", "give each column its own name")
    rows = []
    for source, cells in lines:
        if len(cells) != len(header):
            what = f"{len(cells)} cells where the header names {len(header)} columns"
            problems.add(source, what, "put a cell that holds the separator or a line break in double quotes")
        rows.append((source, dict(zip(header, cells, strict=False))))
    problems.raise_any()
    if header and not rows:
        raise DataError(Problem(file, "holds a header line but no rows", "check that this is the file you mean"))
    return rows


def _csv_lines(text: str, delimiter: str, file: str, problems: Problems) -> Iterator[tuple[Source, list[str]]]:
    """Each record with the line on which it begins. After a broken quote nothing can be told apart: it ends there."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses a document of more than 131,072 characters
    try:
        while True:
            source = Source(file, reader.line_num + 1, "line")
            cells = next(reader, None)
            if cells is None:
                return
            if cells:
                yield source, cells
    except csv.Error as error:
        fix = 'close the quote; write a double quote inside a quoted cell twice: ""'
        problems.add(source, f"the quotes of this record do not match ({error})", fix)
    finally:
        csv.field_size_limit(limit)


def _txt(text: str, file: str) -> list[SourcedRow]:
    """Documents are separated by blank lines. Each is a row with the column `text`."""
    rows: list[SourcedRow] = []
    document: list[str] = []
    start = 1
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        if line.strip():
            start = start if document else number
            document.append(line)
        elif document:
            rows.append((Source(file, start, "line"), {"text": "\n".join(document)}))
            document = []
    return rows


def _parquet(data: bytes, file: str) -> list[SourcedRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        names, records = table.column_names, table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        what = f"not a whole Parquet file: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise DataError(Problem(file, what, "download or export the file again")) from None
    problems = Problems(file)
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(file, f"two columns are named {name!r}", "give each column its own name")
    rows = [(Source(file, i), row) for i, row in enumerate(records, 1)]
    for source, row in rows:
        if (column := _unsafe_column(row)) is not None:
            problems.add(source, f"`{column}` holds a NUL character", "delete that character")
    problems.raise_any()
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
