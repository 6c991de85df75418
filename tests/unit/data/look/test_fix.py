"""`--fix`: what is changed, the log of it, and that a second look finds nothing left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.data.look import checks
from luthier.data.look.fix import check_target, write_fixed
from luthier.data.prepare import gather
from luthier.errors import DataError
from luthier.recipe.schema import DataSettings

Written = Callable[..., Path]
KEY = "sk-" + "aB3d" * 8
ROWS: list[Any] = [
    {"instruction": "Who are you?", "output": "I make violins.", "id": 7},
    {"instruction": "Your key?", "output": f"It is {KEY}, not {KEY}."},
    {"instruction": "Who are you?", "output": "I make violins.", "id": 8},
    {"instruction": "x"},
    {"instruction": "Your mail?", "output": "zhen@gong.cn"},
    {"instruction": "Your mail?", "output": "huan@gong.cn"},
    {"instruction": "Are you one?", "output": "As an AI language model, yes."},
    {"instruction": "Well?", "output": "N/A"},
    {"instruction": "Who are you?", "output": "A baker."},
]


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def turns(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "y"}]


def settings(file: Path, **more: Any) -> DataSettings:
    return DataSettings(**{"train": str(file), "holdout": 0, **more})


def test_what_is_written_and_logged(written: Written, tmp_path: Path) -> None:
    file, out = written(tmp_path / "rows.jsonl", *ROWS), tmp_path / "clean.jsonl"
    before = file.read_bytes()
    result = write_fixed(settings(file), out)
    assert lines(out) == [
        ROWS[0],
        {"instruction": "Your key?", "output": "It is [API key], not [API key]."},
        {"instruction": "Your mail?", "output": "[e-mail address]"},
        ROWS[8],
    ]
    log = [
        (4, "left out", "bad row", "has no `output`"),
        (2, "masked", "API key", "in `output`"),
        (2, "masked", "API key", "in `output`"),
        (3, "left out", "duplicate", f"repeats {file}, line 1"),
        (5, "masked", "e-mail address", "in `output`"),
        (6, "left out", "duplicate", f"repeats {file}, line 5"),  # only once both are masked
        (7, "left out", "boilerplate", ""),
        (8, "left out", "empty answer", ""),
    ]
    assert lines(tmp_path / "clean.fixes.jsonl") == [
        {"where": f"{file}, line {line}", "change": change, "reason": reason, "detail": detail}
        for line, change, reason, detail in log
    ]
    assert result.to_json() == {
        "file": str(out),
        "log": str(tmp_path / "clean.fixes.jsonl"),
        "read": 9,
        "kept": 4,
        "changes": {
            "masked: API key": 2,
            "left out: duplicate": 2,
            "left out: bad row": 1,
            "masked: e-mail address": 1,
            "left out: boilerplate": 1,
            "left out: empty answer": 1,
        },
    }
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.fixes.jsonl", "clean.jsonl", "rows.jsonl"]


def test_nothing_is_left_to_fix(written: Written, tmp_path: Path) -> None:
    out, again = tmp_path / "clean.jsonl", tmp_path / "again.jsonl"
    write_fixed(settings(written(tmp_path / "rows.jsonl", *ROWS)), out)
    left = checks.run(gather(settings(out), seed=42))
    assert [(finding.name, finding.fix) for finding in left] == [("conflicts", "")]
    result = write_fixed(settings(out), again)
    assert (result.read, result.kept, dict(result.changes)) == (4, 4, {})
    assert again.read_bytes() == out.read_bytes()
    assert (tmp_path / "again.fixes.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "content", "more", "expected"),
    [
        ("a.csv", f"q,a,id\nKey?,{KEY},13800138000\n", {"columns": {"instruction": "q", "output": "a"}},
         {"q": "Key?", "a": "[API key]", "id": "13800138000"}),
        ("a.txt", f"My key is {KEY}.\n", {}, {"text": "My key is [API key]."}),
        ("a.json", json.dumps([{"messages": turns(KEY)}]), {}, {"messages": turns("[API key]")}),
    ],
)  # fmt: skip
def test_every_format_stays_what_it_was(
    tmp_path: Path, name: str, content: str, more: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Columns that are not used stay as they are: nobody learns them."""
    file, out = tmp_path / name, tmp_path / "clean.jsonl"
    file.write_text(content, encoding="utf-8")
    write_fixed(settings(file, **more), out)
    assert lines(out) == [expected]
    assert checks.run(gather(settings(out, **more), seed=42)) == []


def test_nothing_is_overwritten(tmp_path: Path, written: Written) -> None:
    out = written(tmp_path / "clean.jsonl", *ROWS[:1])
    (tmp_path / "clean.fixes.jsonl").touch()
    fix = "name another file, or delete it first"
    with pytest.raises(DataError) as caught:
        check_target(out)
    assert [(problem.where, problem.what, problem.fix) for problem in caught.value.problems] == [
        (str(out), "is there already, and is not overwritten", fix),
        (str(tmp_path / "clean.fixes.jsonl"), "is there already, and is not overwritten", fix),
    ]


def test_a_target_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check_target(tmp_path / "no" / "clean.json")
    assert [(problem.what, problem.fix) for problem in caught.value.problems] == [
        ("--fix writes one object a line", f"name it {tmp_path / 'no' / 'clean.jsonl'}"),
        ("its folder does not exist", f"make the folder {tmp_path / 'no'}, or name another"),
    ]


def test_files_of_two_formats_make_no_common_file(tmp_path: Path, written: Written) -> None:
    files = [written(tmp_path / "a.jsonl", ("a", "b")), written(tmp_path / "b.jsonl", {"text": "c"})]
    with pytest.raises(DataError) as caught:
        write_fixed(DataSettings(train=list(map(str, files))), tmp_path / "clean.jsonl")
    (problem,) = caught.value.problems
    assert problem.what == "its files have different formats (alpaca, text), which one file cannot hold"
    assert problem.fix == "give --fix one of the files at a time"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_duplicates_that_are_to_be_kept_are_kept(tmp_path: Path, written: Written) -> None:
    file = written(tmp_path / "a.jsonl", ("a", "b"), ("a", "b"))
    result = write_fixed(settings(file, duplicates="keep"), tmp_path / "clean.jsonl")
    assert (result.kept, dict(result.changes)) == (2, {})


def test_repeats_across_files_are_left_out(tmp_path: Path, written: Written) -> None:
    files = [written(tmp_path / "a.jsonl", ("a", "b")), written(tmp_path / "b.jsonl", ("a", "b"), ("c", "d"))]
    result = write_fixed(DataSettings(train=list(map(str, files))), tmp_path / "clean.jsonl")
    assert (result.read, result.kept) == (3, 2)
