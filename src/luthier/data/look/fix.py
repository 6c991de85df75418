"""Cleaned rows in a new file, and a log of each change beside it. The files that were read stay as they are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from luthier.data.conversation import Conversation, Source
from luthier.data.formats import Converted, convert
from luthier.data.look import answers, private
from luthier.data.prepare import no_garbage_collection
from luthier.data.problems import Problems
from luthier.data.sources import Rows, read_rows, stored_rows
from luthier.data.split import digest_of
from luthier.errors import DataError, Problem
from luthier.hub.fetch import fetch_data
from luthier.recipe.schema import DataSettings


@dataclass
class Fixed:
    """What was written: rows read and kept, and how many changes of each kind the log names."""

    file: Path
    log: Path
    read: int = 0
    kept: int = 0
    changes: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "log": str(self.log),
            "read": self.read,
            "kept": self.kept,
            "changes": dict(self.changes.most_common()),
        }


def log_of(file: Path) -> Path:
    """`clean.jsonl` → `clean.fixes.jsonl`"""
    return file.with_name(f"{file.stem}.fixes.jsonl")


def check_target(file: Path) -> None:
    """Raises DataError where `file` or its log would overwrite something, or cannot be written."""
    problems = Problems(str(file))
    if file.suffix.lower() not in (".jsonl", ".ndjson"):
        problems.add(str(file), "--fix writes one object a line", f"name it {file.with_suffix('.jsonl')}")
    for path in (file, log_of(file)):
        if path.exists():
            problems.add(str(path), "is there already, and is not overwritten", "name another file, or delete it first")
    if not file.absolute().parent.is_dir():
        problems.add(str(file), "its folder does not exist", f"make the folder {file.parent}, or name another")
    problems.raise_any()


def write_fixed(settings: DataSettings, file: Path) -> Fixed:
    """Writes the rows of `settings.train` that can be used, as they stand in their files but for these changes.

    Left out: bad rows, exact repeats (unless `data.duplicates: keep`), empty answers, boilerplate. Masked: keys,
    addresses and numbers. What needs judgement stays: answers that contradict, rows that are nearly the same.

    Raises DataError: the target exists, or the files are of different formats and make no common file.
    """
    check_target(file)
    references = [settings.train] if isinstance(settings.train, str) else settings.train
    paths = [path for reference in references for path in fetch_data(reference)]
    result, formats = Fixed(file, log_of(file)), set[str]()
    parts = [path.with_name(f".{path.name}.part") for path in (file, result.log)]
    try:
        with (
            parts[0].open("w", encoding="utf-8", newline="\n") as out,
            parts[1].open("w", encoding="utf-8", newline="\n") as log,
        ):
            first: dict[bytes, Source] = {}
            for path in paths:
                formats.add(_write_file(path, settings, result, first, (out, log)))
        if len(formats - {"none"}) > 1:
            what = f"its files have different formats ({', '.join(sorted(formats))}), which one file cannot hold"
            raise DataError(Problem(", ".join(references), what, "give --fix one of the files at a time"))
        parts[1].replace(result.log)
        parts[0].replace(file)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise DataError(Problem(str(file), what, "free some space, or name a file elsewhere")) from None
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return result


def _write_file(
    path: Path,
    settings: DataSettings,
    result: Fixed,
    first: dict[bytes, Source],
    out: tuple[IO[str], IO[str]],
) -> str:
    """One file's rows; the name of their format."""
    loose = settings.model_copy(update={"bad_rows": "drop"})
    with no_garbage_collection():
        rows = read_rows(path, drop=True)
        before = convert(rows, loose)
        used = _used_columns(rows, before)
        changed = {source: found for source, row in rows.rows if (found := list(_masked_columns(row, used)))}
        after = before
        if changed:
            masked = stored_rows()
            for source, row in rows.rows:
                masked.append((source, _with(row, changed.get(source, []))))
            rows = replace(rows, rows=masked)
            after = convert(rows, loose)
    result.read += len(rows.rows) + len(rows.dropped)
    conversations = iter(after.conversations)  # of all rows but those that were dropped, in their order
    rows_file, log = out
    for source, why in sorted(after.dropped.items(), key=lambda item: item[0].number):
        _log(log, result, source, "left out", "bad row", why)
    for source, row in rows.rows:
        if source in after.dropped:
            continue
        reason, detail = _why_not(next(conversations), first)
        if reason and (reason != "duplicate" or settings.duplicates == "drop"):
            _log(log, result, source, "left out", reason, detail)
            continue
        for column, _, kinds in changed.get(source, []):
            for kind in kinds:
                _log(log, result, source, "masked", kind, f"in `{column}`")
        rows_file.write(json.dumps(row, ensure_ascii=False) + "\n")
        result.kept += 1
    return after.format.value


def _why_not(row: Conversation, first: dict[bytes, Source]) -> tuple[str, str]:
    """Why a row is left out, or ""."""
    if answers.is_empty(row):
        return "empty answer", ""
    if answers.is_boilerplate(row):
        return "boilerplate", ""
    earlier = first.setdefault(digest_of(row), row.source)
    if earlier is not row.source:
        return "duplicate", f"repeats {earlier}"
    return "", ""


def _used_columns(rows: Rows, converted: Converted) -> set[str]:
    return {column for _, row in rows.rows for column in row} - set(converted.unused)


Change = tuple[str, Any, list[str]]
"""A column, its new value, and the kinds of what was masked in it."""


def _masked_columns(row: dict[str, Any], used: set[str]) -> Iterator[Change]:
    for column, value in row.items():
        kinds: list[str] = []
        if column in used:
            masked = _masked(value, kinds)
            if kinds:
                yield column, masked, kinds


def _masked(value: Any, kinds: list[str]) -> Any:
    """The same value with every text in it masked."""
    if isinstance(value, str):
        text, found = private.replaced(value)
        kinds += found
        return text
    if isinstance(value, list):
        return [_masked(item, kinds) for item in value]
    if isinstance(value, dict):
        return {key: _masked(item, kinds) for key, item in value.items()}
    return value


def _with(row: dict[str, Any], changes: list[Change]) -> dict[str, Any]:
    return {**row, **{column: value for column, value, _ in changes}} if changes else row


def _log(log: IO[str], result: Fixed, source: Source, change: str, reason: str, detail: str) -> None:
    result.changes[f"{change}: {reason}"] += 1
    line = {"where": str(source), "change": change, "reason": reason, "detail": detail}
    log.write(json.dumps(line, ensure_ascii=False) + "\n")
