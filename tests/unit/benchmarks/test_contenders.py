"""The order in which contenders meet their rows, what they are said to train, and how a batch is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import make_tokenizer

import benchmarks.contenders
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.expert import grouped_by_length
from benchmarks.contenders.limit import mean_step
from benchmarks.contenders.llamafactory import model_in_dtype
from benchmarks.contenders.luthier import in_file_order
from benchmarks.contenders.tutorial import notes, tutorial_row
from benchmarks.limit import Tokens
from benchmarks.meter import count
from benchmarks.task import IGNORE, Task
from luthier.data.batches import epoch_steps


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_has_its_file(name: str) -> None:
    folder = Path(benchmarks.contenders.__file__).parent
    assert (folder / f"{CONTENDERS[name].module}.py").is_file()


def test_grouping_keeps_the_rows_of_the_warm_up_step(task: Task) -> None:
    order = grouped_by_length(task)
    batches = [[len(task.input_ids[i]) for i in order[start : start + 2]] for start in range(0, 8, 2)]
    assert sorted(batches[:2]) == [[3, 4], [5, 8]]
    assert sorted(batches[2:]) == [[6, 7], [9, 10]]


def test_luthier_draws_the_rows_in_the_order_of_the_task(task: Task) -> None:
    file = in_file_order(task)
    steps = epoch_steps(8, 4, seed=task.seed, epoch=0)
    assert [[file[i] for i in step] for step in steps] == [task.messages[:4], task.messages[4:]]


def test_the_tutorials_row() -> None:
    tokenizer = make_tokenizer()
    row = tutorial_row(tokenizer, {"content": "S"}, {"content": "Hi"}, {"content": "Ho"})
    assert tokenizer.decode(row["input_ids"]) == (
        "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nHo<|endoftext|>"
    )
    trained = [token for token in row["labels"] if token != IGNORE]
    assert tokenizer.decode(trained) == "Ho<|endoftext|>"
    assert row["attention_mask"] == [1] * len(row["input_ids"])


def test_the_tutorials_settings_are_named_where_they_are_not_its_own(task: Task) -> None:
    assert notes(task, single=True) == [
        "its own prompt format",
        "batches of 2 instead of 16",
        "4 rows a step instead of 32",
    ]
    assert notes(replace(task, batch_size=32, padded_batch=16), single=False) == [
        "Luthier's tokens: its format has no turns"
    ]


def test_llamafactory_gets_the_model_in_the_dtype_of_the_task(task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "stored"
    folder.mkdir()
    (folder / "config.json").write_text('{"dtype": "bfloat16", "vocab_size": 8}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    stored = replace(task, model=str(folder))
    assert model_in_dtype(replace(stored, dtype="bfloat16")) == folder
    copy = model_in_dtype(stored)
    assert json.loads((copy / "config.json").read_text(encoding="utf-8")) == {"dtype": "float32", "vocab_size": 8}
    assert (copy / "model.safetensors").read_bytes() == b"weights"


def test_a_padded_batch_is_counted_without_its_padding() -> None:
    batch = {
        "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "labels": torch.tensor([[IGNORE, 2, 3], [IGNORE, 5, IGNORE]]),
    }
    assert count(batch) == (2, 5, 3)


def test_a_flat_batch_is_counted_by_its_positions() -> None:
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1]]),
        "labels": torch.tensor([[IGNORE, 2, 3, IGNORE, 5]]),
    }
    assert count(batch) == (2, 5, 3)


def test_the_limit_counts_the_measured_steps(task: Task) -> None:
    """All four rows begin alike, so the longest one's nine predicting tokens hold those of the others."""
    assert mean_step(task) == Tokens(distinct=9, labelled=4, contexts=45)
