"""Rows that the benchmark makes or reads, and what becomes of them as tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny import QWEN3, make_tokenizer

from benchmarks import jobs, rows
from benchmarks.task import num_labels
from luthier.errors import DataError, Problem


@pytest.mark.parametrize("name", jobs.JOBS)
def test_made_rows_are_the_same_every_time(name: str) -> None:
    make = jobs.JOBS[name].make
    made = make(random.Random(0), 4)
    assert made == make(random.Random(0), 4)
    for row in made:
        assert [message["role"] for message in row[:3]] == ["system", "user", "assistant"]
        assert len(row) % 2 == 1 and row[-1]["role"] == "assistant"


def test_made_dialogue_is_as_long_as_real_dialogue() -> None:
    """Of huanhuan.json half have at most 23 characters, a tenth at most 5 and a tenth over 61."""
    lengths = sorted(len(rows.chinese(random.Random(seed))) for seed in range(1000))
    assert (lengths[100], lengths[500], lengths[900]) == (9, 23, 62)


def test_english_has_the_words_asked_for() -> None:
    text = rows.english(random.Random(0), 25)
    assert len(text.split()) == 25
    assert text.endswith(".")


def test_rows_of_the_document_job_share_it() -> None:
    made = rows.one_document(random.Random(0), 3)
    assert len({row[0]["content"] for row in made}) == 1
    assert len(made[0][0]["content"].split()) == 1200 + len(rows.SYSTEM_EN.split())
    assert len({row[1]["content"] for row in made}) == 3


def test_rows_are_drawn_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    given = [{"instruction": f"{number}?", "input": "", "output": f"{number}!"} for number in range(50)]
    file.write_text(json.dumps(given), encoding="utf-8")
    read = jobs.read(file, 20)
    assert read == jobs.read(file, 20)
    asked = [row[1]["content"] for row in read]
    assert len(set(asked)) == 20 and asked != sorted(asked)
    number = asked[0].removesuffix("?")
    assert read[0] == [
        {"role": "system", "content": "现在你要扮演皇帝身边的女人--甄嬛"},
        {"role": "user", "content": f"{number}?"},
        {"role": "assistant", "content": f"{number}!"},
    ]


def test_a_file_with_too_few_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('[{"instruction": "1?", "input": "", "output": "1!"}]', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        jobs.read(file, 8)
    what = "holds 1 rows, and this job takes 8"
    assert caught.value.problems == (Problem(str(file), what, "give more rows, or fewer steps: --steps, --batch-size"),)


def folder_of(tokenizer: Any, folder: Path, context: int = 256) -> Path:
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context}), encoding="utf-8")
    return folder


TALK = rows.conversation("S", "a", "b", "c", "d")


def test_turns_stay_one_row_where_the_template_only_adds(tmp_path: Path) -> None:
    rendered = jobs.render([TALK], folder_of(make_tokenizer(), tmp_path))
    assert (rendered.messages, rendered.train_on, len(rendered.input_ids)) == ([TALK], "all", 1)
    assert num_labels(rendered.labels[0]) == 4  # b, d and the end of each turn


def test_turns_become_rows_where_the_template_rewrites_them(tmp_path: Path) -> None:
    rendered = jobs.render([TALK], folder_of(make_tokenizer(QWEN3), tmp_path))
    assert sorted(map(len, rendered.messages)) == [3, 5]
    assert rendered.train_on == "last"
    assert [num_labels(labels) for labels in rendered.labels] == [2, 2]


def test_rows_longer_than_the_model_takes_are_refused(tmp_path: Path) -> None:
    folder = folder_of(make_tokenizer(), tmp_path, context=20)
    with pytest.raises(DataError) as caught:
        jobs.render([TALK], folder)
    [problem] = caught.value.problems
    assert (problem.where, problem.fix) == (str(folder), "name another model, or other rows")
    assert problem.what.startswith("takes 20 tokens, and the longest row has ")
