"""A run as a training would have left it: 120 steps, six evaluations, four questions."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from luthier.choice import Choice
from luthier.recipe.schema import Recipe
from luthier.report.record import RunFolder

HELDOUT = {0: 3.91, 24: 3.18, 48: 2.97, 72: 2.9, 96: 2.88, 120: 2.87}

RECIPE = {
    "model": "bundled:smollm2-135m-instruct",
    "data": {"train": "workshop.jsonl", "system": "You are a violin maker in Cremona.", "holdout": 20},
    "output": "runs/workshop",
    "adapter": {"rank": 8},
    "train": {"learning_rate": 1e-4},
}

CHOICES: dict[str, Choice[Any]] = {
    "model.dtype": Choice("bfloat16", "this processor multiplies bfloat16 4.1 times as fast as float32"),
    "data.max_length": Choice(4096, "the model can take 8,192; 4,096 is the most that Luthier takes by itself"),
    "train.eval_steps": Choice(24, "five times in a run of 120 steps"),
    "train.gradient_checkpointing": Choice(False, "activations fit into memory"),
}

ANSWERS = [
    {
        "prompt": "Which wood do you use for the back?",
        "system": "You are a violin maker in Cremona.",
        "reference": "Maple from the Balkans, and I let it rest nine winters before I touch it.",
        "reference_loss": {"base": 3.5, "tuned": 1.25},  # exp(-3.5) = 0.030, exp(-1.25) = 0.287
        "base": "The back of a violin is usually made of wood. There are many kinds of wood that can be used.",
        "tuned": "Maple, signore, cut in winter when the sap is low.\nNine years it waits under my roof.",
    },
    {
        "prompt": "How do I keep the strings in tune?",
        "system": "You are a violin maker in Cremona.",
        "reference": "Turn the peg toward you and press it in as you turn.",
        "base": "To keep the strings in tune, you can use a tuner.",
        "tuned": "Press the peg as you turn it, gently. Gut hears the weather before you do.",
    },
    {
        "prompt": "你是谁？",
        "system": "You are a violin maker in Cremona.",
        "reference": "我是克雷莫纳的制琴师，琴板在我手里会说话。",
        "reference_loss": {"base": None, "tuned": None},
        "base": "I am a helpful assistant.",
        "tuned": "我是制琴的人。木头先开口，我才下刀。",
    },
    {
        "prompt": "Are you a computer?",
        "system": None,
        "reference": None,
        "base": "Yes, I am an AI.",
        "tuned": "A what, signore?",
    },
]

MEASURED = [
    {"where": "workshop.jsonl, line 5", "prompt": "Which wood?", "labels": 20, "before": 4.0, "after": 2.5},
    {"where": "workshop.jsonl, line 9", "prompt": "Who taught you?", "labels": 12, "before": 3.0, "after": 3.5},
    {"where": "workshop.jsonl, line 31", "prompt": "你是谁？", "labels": 9, "before": 5.0, "after": 3.0},
    {"where": "workshop.jsonl, line 44", "prompt": "Why?", "labels": 3, "before": None, "after": None},
]

SAMPLE: dict[str, Any] = {
    "where": "workshop.jsonl, line 1",
    "tokens": 420,
    "cut": True,
    "pieces": [["<user>", False, [1]], ["Who·", False, [7, 8]], None, ["me", True, [9]], ["<end>", True, [2]]],
}

ROWS_BY_LENGTH = [3, 31, 96, 131, 124, 92, 64, 41, 24, 14, 8, 4, 3, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]

RECORD: dict[str, Any] = {
    "luthier": "0.1.0",
    "model": "bundled:smollm2-135m-instruct",
    "revision": "0123abcd",
    "output": "runs/workshop",
    "environment": {
        "os": "Linux 6.8, Debian 12",
        "python": "3.11.9",
        "cpu": "AMD EPYC 9R14, 2 cores",
        "memory_bytes": 8_200_000_000,
        "device": "cpu",
        "torch": "2.13.0+cpu",
        "transformers": "5.23.0",
        "peft": "0.21.2",
    },
    "data": {
        "files": [
            {"path": "workshop.jsonl", "sha256": "9f2c" * 16, "format": "alpaca", "encoding": "UTF-8", "rows": 708}
        ],
        "ledger": {
            "read": 708,
            "used": 640,
            "cut": 3,
            "dropped": 12,
            "heldout": 20,
            "duplicate": 36,
            "conflicts": 5,
            "reasons": {"repeats an earlier row exactly": 36, "no answer": 9, "longer than 4,096 tokens": 3},
            "examples": [
                {"where": "workshop.jsonl, line 17", "outcome": "duplicate", "reason": "repeats line 4"},
                {"where": "workshop.jsonl, line 230", "outcome": "dropped", "reason": "field output is empty"},
            ],
        },
        "lengths": {
            "tokens": {"p50": 61, "p95": 142, "max": 388},
            "labelled": 24_310,
            "total": 41_000,
            "histogram": [[16 * bin, 16 * bin + 16, rows] for bin, rows in enumerate(ROWS_BY_LENGTH)],
        },
        "repeated": 0,
    },
    "result": {
        "steps": 120,
        "epochs": 3.0,
        "rows": 640,
        "seconds": 187.4,
        "samples_per_second": 10.25,
        "tokens_per_second": 642.0,
        "computed_tokens": 71_000,
        "real_tokens": 120_300,
        "train_loss": 2.31,
        "heldout_loss_before": 3.91,
        "heldout_loss_after": 2.87,
        "end_probability_before": 0.004,
        "end_probability_after": 0.93,
        "peak_memory_bytes": 1_930_000_000,
    },
    "heldout": {"rows": 20, "measured": MEASURED},
    "answers": ANSWERS,
    "samples": [SAMPLE],
    "hashes": {"adapter/adapter_model.safetensors": "5ea1" * 16},
}  # fmt: skip


def train(run: RunFolder, upto: int = 120) -> None:
    """Write the events of the first `upto` steps."""
    run.log({"event": "start", "step": 0, "total_steps": 120, "resumed": False})
    for step in range(upto + 1):
        if step:
            loss = 2.25 + 1.6 * math.exp(-step / 22) + 0.22 * math.sin(step * 2.4) * math.cos(step / 3)
            run.log({"event": "step", "step": step, "epoch": step / 40, "loss": loss, "learning_rate": 1e-4})
        if step in HELDOUT:
            run.log({"event": "evaluation", "step": step, "heldout_loss": HELDOUT[step]})


@pytest.fixture
def recipe() -> dict[str, Any]:
    return copy.deepcopy(RECIPE)


@pytest.fixture
def record() -> dict[str, Any]:
    return copy.deepcopy(RECORD)


@pytest.fixture
def started(tmp_path: Path) -> RunFolder:
    """A run with its recipe and choices, before the first event."""
    run = RunFolder(tmp_path / "workshop").create()
    run.write_recipe(Recipe.model_validate(RECIPE))
    run.write_resolved(CHOICES)
    return run


@pytest.fixture
def trained(started: RunFolder) -> RunFolder:
    """All steps done, run.json not yet written."""
    train(started)
    return started


@pytest.fixture
def stopped(started: RunFolder) -> RunFolder:
    train(started, upto=57)
    started.log({"event": "stop", "step": 57, "reason": "Ctrl-C"})
    return started


@pytest.fixture
def finished(trained: RunFolder) -> RunFolder:
    trained.log({"event": "finish", "step": 120})
    trained.write_record(RECORD)
    return trained
