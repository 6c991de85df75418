"""Luthier itself, through `luthier.train`: its figures are those of the run's events.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import luthier
from benchmarks.meter import peak_bytes, versions
from benchmarks.task import ALPHA, LEARNING_RATE, RANK, TARGETS, Result, Task, num_labels
from luthier.data.batches import epoch_steps


def run(task: Task, engine: str) -> Result:
    run = luthier.train(recipe(task, engine), fresh=True)
    steps = [event for event in run.events() if event["event"] == "step"]
    choices = run.read_resolved()
    return Result(
        seconds=steps[-1]["time"] - steps[0]["time"],
        rows=task.batch_size * task.steps,
        tokens=sum(step["tokens"] for step in steps[1:]),
        labelled=sum(map(num_labels, task.labels[task.measured])),
        losses=[step["loss"] for step in steps],
        peak_bytes=max(peak_bytes(task.device), *(step["memory_bytes"] for step in steps)),  # of all its processes
        same_labels=True,
        notes=[f"engine {choices['train.engine'].value}"],
        versions=versions(),
        extra={
            "computed_tokens": sum(step["computed_tokens"] for step in steps[1:]),
            "choices": {name: vars(choice) for name, choice in choices.items()},
        },
    )


def recipe(task: Task, engine: str) -> dict[str, Any]:
    rows = Path(task.folder) / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in in_file_order(task)),
        encoding="utf-8",
    )
    return {
        "model": {"ref": task.model, "dtype": task.dtype, "device": task.device},
        "data": {
            "train": str(rows),
            "holdout": 0,
            "max_length": task.longest,
            "too_long": "error",
            "duplicates": "keep",
            "train_on": task.train_on,
        },
        "adapter": {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "targets": list(TARGETS)},
        "train": {
            "steps": task.steps + 1,
            "batch_size": task.batch_size,
            "learning_rate": LEARNING_RATE,
            "schedule": "linear",
            "warmup": 0,
            "save_steps": task.steps + 1,
            "engine": engine,
            "seed": task.seed,
        },
        "output": str(Path(task.folder) / "run"),
    }


def in_file_order(task: Task) -> list[list[dict[str, str]]]:
    """The rows where Luthier's shuffle finds them, so that each step trains the task's own rows."""
    steps = epoch_steps(len(task.messages), task.batch_size, seed=task.seed, epoch=0)
    drawn = [index for step in steps for index in step]
    place = dict(zip(drawn, task.messages, strict=True))
    return [place[index] for index in range(len(drawn))]
