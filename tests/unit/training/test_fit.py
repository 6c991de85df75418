"""What the Trainer is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from luthier.training.fit import OneDevice


def test_with_two_cards_one_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer would spread a batch over both, row by row, and a flat batch is one row."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    stock, ours = TrainingArguments(str(tmp_path)), OneDevice(str(tmp_path))
    assert (stock.n_gpu, stock.parallel_mode) == (2, ParallelMode.NOT_DISTRIBUTED)
    assert (ours.n_gpu, ours.parallel_mode) == (1, ParallelMode.NOT_PARALLEL)
    assert OneDevice(str(tmp_path), use_cpu=True).n_gpu == 0
