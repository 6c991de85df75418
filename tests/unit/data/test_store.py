"""Rows on the disk are the rows that a list would hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.data import sources, store
from luthier.data.conversation import Conversation, Message, Source
from luthier.data.look import checks
from luthier.data.prepare import gather
from luthier.data.store import Part, first_of, stored_conversations
from luthier.errors import DataError
from luthier.recipe.schema import DataSettings

ROWS = [
    Conversation(
        (
            Message("user", f"问 {number}\ud800"),
            Message("assistant", "答", number % 2 == 0, "想" if number % 3 else None),
        ),
        Source("rows.jsonl", number, "line"),
    )
    for number in range(1, 301)
]


@pytest.fixture
def few_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "IN_MEMORY", 10)
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("count", [0, 9, 10, 11, 137, 138, 139, 300])
def test_as_a_list_would(few_in_memory: None, tmp_path: Path, count: int) -> None:
    kept = stored_conversations()
    for row in ROWS[:count]:
        kept.append(row)
    assert len(kept) == count
    assert [(row, row.source) for row in kept] == [(row, row.source) for row in ROWS[:count]]
    assert [kept[at] for at in range(count)] == ROWS[:count]
    assert kept[3:200:50] == ROWS[:count][3:200:50]
    some = Part(kept, np.arange(0, count, 7))
    assert list(some) == ROWS[:count:7]
    assert some[1:3] == ROWS[:count:7][1:3]
    assert list((tmp_path / "home").glob("*")) == []  # the file has no name


def test_two_who_read_at_once_do_not_disturb_each_other(few_in_memory: None) -> None:
    kept = stored_conversations()
    for row in ROWS:
        kept.append(row)
    assert [(one, other) for one, other in zip(kept, reversed(kept), strict=True)] == list(
        zip(ROWS, reversed(ROWS), strict=True)
    )


def test_a_disk_that_cannot_hold_them(few_in_memory: None, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, not a folder")
    kept = stored_conversations()
    with pytest.raises(DataError) as caught:
        for row in ROWS:
            kept.append(row)
    assert str(caught.value).startswith(f"{tmp_path / 'home'}: cannot hold the rows while they are looked at: ")
    assert "set LUTHIER_HOME to a folder on another disk" in str(caught.value)


def test_the_first_of_those_that_are_the_same() -> None:
    keys = np.array([[1, 2], [2, 1], [1, 2], [0, 9], [2, 1], [1, 2]], np.uint64)
    assert first_of(keys).tolist() == [0, 1, 0, 3, 1, 0]
    assert first_of(np.empty((0, 2), np.uint64)).tolist() == []


def found_in(file: Path) -> tuple[list[Any], list[str], list[str]]:
    data = gather(DataSettings(train=str(file), holdout="10%"), seed=42)
    return checks.run(data), [str(row.source) for row in data.train], [str(row.source) for row in data.heldout]


def test_findings_and_split_do_not_depend_on_where_the_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every seventh row repeats one, every eleventh contradicts one; turns bind rows together."""
    rows = []
    for number in range(400):
        question = f"Which wood is number {number % 390 if number % 11 == 0 else number} of the shop?"
        turns = [question, f"Maple, from the hill {number} beyond the river."]
        if number % 7 == 3:
            turns = rows[number - 3]
        elif number % 5 == 0:
            turns = [f"Good day {number % 40}", "Good day to you.", *turns]
        rows.append(turns)
    roles = ("user", "assistant")
    file = tmp_path / "rows.json"
    objects = [{"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]} for turns in rows]
    file.write_text(json.dumps(objects), encoding="utf-8")
    in_memory = found_in(file)
    assert {finding.name for finding in in_memory[0]} >= {"duplicates", "conflicts"}
    monkeypatch.setattr(store, "IN_MEMORY", 3)
    monkeypatch.setattr(sources, "HEAD", 50)  # characters of the file that are read at once
    assert found_in(file) == in_memory
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    assert [finding.count for finding in found_in(lines)[0]] == [finding.count for finding in in_memory[0]]
