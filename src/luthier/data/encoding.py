"""Bytes become text. What is not plainly one encoding is refused: a wrong guess would train on garbage.

UTF-8; UTF-8, UTF-16 and UTF-32 with a byte order mark; GBK and GB18030, recognised by their Chinese.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from luthier.data.conversation import Source
from luthier.data.problems import Problems
from luthier.errors import DataError, Problem

RESAVE = 'save the file as UTF-8 (Notepad: "Save as", encoding UTF-8; Excel: "CSV UTF-8")'
HAN = re.compile("[\u4e00-\u9fff]")
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


@dataclass(frozen=True)
class Text:
    """A file's text, which need not be in memory: only one that is not UTF-8 is, as `held`.

    `head`: its first characters, at least HEAD of them where there are so many.
    """

    path: Path
    encoding: str
    sha256: str
    head: str
    escapes: bool
    held: str | None = None

    def open(self, newline: str) -> TextIO:
        """From the beginning. `newline` is that of `open`."""
        if self.held is not None:
            return io.StringIO(self.held, newline=newline)
        return self.path.open(encoding=self.encoding, newline=newline)

    def whole(self) -> str:
        with self.open("") as text:
            return text.read()


HEAD = 1 << 20
ESCAPES = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
"""JSON's escapes of lone surrogates and NUL: only a text that has one is searched for what they make."""


def text_of(path: Path) -> Text:
    """Checks a file's bytes from its first to its last, and holds a part of them at a time where it is UTF-8.

    Raises DataError where the encoding is broken or open to doubt; OSError where it cannot be read.
    """
    digest = hashlib.sha256()
    decoder, encoding = codecs.getincrementaldecoder("utf-8")(), ""
    head, tail, escapes, plain = "", "", False, True
    for part in parts_of(path):
        digest.update(part)
        if not encoding:
            encoding = "utf-8-sig" if part.startswith(codecs.BOM_UTF8) else "utf-8"
            part = part.removeprefix(codecs.BOM_UTF8)
        if plain:
            try:
                text = decoder.decode(part)
            except UnicodeDecodeError:
                plain = False
                continue
            plain = "\0" not in text
            escapes = escapes or ESCAPES.search(tail + text) is not None
            head, tail = head or text, text[-5:]
    if plain:
        try:
            decoder.decode(b"", final=True)
            return Text(path, encoding, digest.hexdigest(), head, escapes)
        except UnicodeDecodeError:
            pass
    text, encoding = decode(path.read_bytes(), str(path))
    return Text(path, encoding, digest.hexdigest(), text, ESCAPES.search(text) is not None, text)


def parts_of(path: Path) -> Iterator[bytes]:
    """A file's bytes, some at a time."""
    with path.open("rb") as file:
        while part := file.read(4 * HEAD):
            yield part


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
    if b"\0" in data[:2000]:
        what = "looks like UTF-16 without its byte order mark, so which of its two forms it is would be a guess"
        raise DataError(Problem(file, what, RESAVE))
    pasted, rest = _utf8_lines(data, file)
    for codec in ("gbk", "gb18030"):
        try:
            text = rest.decode(codec)
        except UnicodeDecodeError:
            continue
        if _is_chinese(text[:1_000_000]):
            pasted.raise_any()
            return text, codec
    what = "from here on the text is neither UTF-8 nor plainly GBK, and no byte order mark says what it is"
    raise DataError(Problem(str(Source(file, first, "line")), what, RESAVE))


def _utf8_lines(data: bytes, file: str) -> tuple[Problems, bytes]:
    """Lines of Chinese in UTF-8, of which GBK would make other Chinese characters; and the file without them."""
    problems, rest = Problems(file), []
    for number, line in enumerate(data.split(b"\n"), 1):
        if _is_utf8_chinese(line):
            fix = "write that line again, and save the whole file as UTF-8"
            problems.add(Source(file, number, "line"), "is UTF-8, while the rest of the file is GBK", fix)
        else:
            rest.append(line)
    return problems, b"\n".join(rest)


def _is_utf8_chinese(line: bytes) -> bool:
    try:
        return HAN.search(line.decode()) is not None
    except UnicodeDecodeError:
        return False


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
    han = HAN.findall(text)
    return sum(c in FREQUENT for c in han) > 0.2 * len(han)


def _decode_strictly(data: bytes, codec: str, file: str) -> str:
    try:
        return data.decode(codec.removesuffix("-sig"))
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(codec.removesuffix("-sig"), errors="replace").count("\n") + 1
        what = f"its byte order mark says {codec}, but the bytes break that encoding ({error.reason})"
        raise DataError(Problem(str(Source(file, line, "line")), what, RESAVE)) from None
