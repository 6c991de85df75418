"""Bytes that a run needs, and a disk that lacks them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import add_adapter, make_model

from luthier.errors import Problem, RunError
from luthier.recipe.schema import TrainSettings
from luthier.report import disk
from luthier.report.record import RunFolder
from luthier.training import room


def test_a_run_needs_its_checkpoints_and_one_more(tmp_path: Path) -> None:
    model = add_adapter(make_model("llama"))
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 1000)
    one = 12 * weights + 600 * 10 + 200_000
    assert room.checkpoint_bytes(model, 10) == one
    settings = TrainSettings(save_total_limit=2, logging_steps=5)
    assert room.needed(model, settings, 50, tmp_path) == 3 * one + one // 3 + 1000 + 2_000_000
    best = TrainSettings(save_total_limit=2, logging_steps=5, load_best=True)
    assert room.needed(model, best, 50, tmp_path) == 4 * one + one // 3 + 1000 + 2_000_000


def test_what_a_run_has_written_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    monkeypatch.setattr(disk, "free_bytes", lambda path: 3_000_000)
    with pytest.raises(RunError) as caught:
        room.check(run, 5_000_000)
    what = "the run needs 5 MB on this disk, and 3 MB are free"
    fix = "make room, or write elsewhere: --set output=FOLDER (save_total_limit and adapter.rank need less)"
    assert caught.value.problems == (Problem(str(run.path), what, fix),)
    (run.checkpoints_dir / "checkpoint-5").mkdir(parents=True)
    (run.checkpoints_dir / "checkpoint-5" / "optimizer.pt").write_bytes(b"x" * 2_000_000)
    room.check(run, 5_000_000)
