from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.task import IGNORE, Task


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Eight rows of lengths 3 to 10 in mixed order: steps of four rows, padded two by two."""
    lengths = [5, 3, 8, 4, 10, 6, 9, 7]
    return Task(
        job="test",
        model="",
        messages=[[{"role": "user", "content": str(length)}] for length in lengths],
        input_ids=[list(range(length)) for length in lengths],
        labels=[[IGNORE] * (length - 1) + [length - 1] for length in lengths],
        train_on="all",
        batch_size=4,
        padded_batch=2,
        steps=1,
        dtype="float32",
        device="cpu",
        folder=str(tmp_path),
    )
