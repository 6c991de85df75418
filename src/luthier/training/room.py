"""Room on the disk for a whole run, asked for before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.errors import Problem, RunError
from luthier.recipe.schema import TrainSettings
from luthier.report import disk, words
from luthier.report.record import RunFolder

BYTES_PER_WEIGHT = 12  # of an adapter in a checkpoint: itself and AdamW's two moments, in float32
BYTES_PER_LOG = 600  # a line of events.jsonl and the same in trainer_state.json
SMALL_FILES = 200_000  # random states, scheduler, configuration
REPORT = 2_000_000  # with ledger and record


def needed(model: Any, settings: TrainSettings, steps: int, tokenizer: Path) -> int:
    """Bytes that a run writes: the checkpoints kept, the next one before an old one goes, adapter and report.

    Not what trackers write.
    """
    checkpoint = checkpoint_bytes(model, steps // settings.logging_steps)
    kept = settings.save_total_limit + 1 + settings.load_best
    adapter = checkpoint // 3 + sum(file.stat().st_size for file in tokenizer.glob("*token*"))
    return kept * checkpoint + adapter + REPORT


def checkpoint_bytes(model: Any, logged: int) -> int:
    weights: int = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return BYTES_PER_WEIGHT * weights + BYTES_PER_LOG * logged + SMALL_FILES


def check(run: RunFolder, needed: int) -> None:
    """Raises RunError where the disk is too full for what the run has yet to write."""
    there = sum(file.stat().st_size for file in run.checkpoints_dir.rglob("*") if file.is_file())
    free = disk.free_bytes(run.path)
    if there + free < needed:
        what = f"the run needs {words.size(needed - there)} on this disk, and {words.size(free)} are free"
        fix = "make room, or write elsewhere: --set output=FOLDER (save_total_limit and adapter.rank need less)"
        raise RunError(Problem(str(run.path), what, fix))
