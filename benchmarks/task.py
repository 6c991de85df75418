"""What a contender is given and what it gives back, as JSON files between processes. The standard library alone:
a peer's own environment has no Luthier."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

IGNORE = -100
RANK, ALPHA = 8, 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEARNING_RATE = 1e-4
"""The tutorial's adapter and learning rate, which every contender trains with."""


@dataclass(frozen=True)
class Task:
    """One job for one contender.

    Rows are in the order of training: the first `batch_size` make the warm-up step, and so on. `input_ids` and `labels`
    (-100 where nothing is learned) are Luthier's, for contenders that take tokens; `messages` is the same as text.
    """

    job: str
    model: str  # folder
    messages: list[list[dict[str, str]]]
    input_ids: list[list[int]]
    labels: list[list[int]]
    train_on: str  # "all" assistant turns or the "last"
    batch_size: int  # rows of an optimizer step
    padded_batch: int  # rows of a micro-batch that fit into memory when padded
    steps: int  # measured steps, behind the one that warms up
    dtype: str
    device: str
    folder: str  # for what the contender writes
    seed: int = 42

    @property
    def accumulation(self) -> int:
        return self.batch_size // self.padded_batch

    @property
    def longest(self) -> int:
        return max(map(len, self.input_ids))

    @property
    def warm_up(self) -> slice:
        return slice(0, self.batch_size)

    @property
    def measured(self) -> slice:
        return slice(self.batch_size, len(self.input_ids))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Task:
        return cls(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Result:
    """What one run of a contender measured; `rows`, `tokens` and `labelled` are those of the measured steps.

    `losses` holds the loss of every step, the warm-up first: the mean over the step's labelled tokens.
    """

    seconds: float
    rows: int
    tokens: int
    labelled: int
    losses: list[float]
    peak_bytes: int
    same_labels: bool  # whether it trained the task's tokens and labels, so that its first loss must agree
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Result:
        return cls(**json.loads(file.read_text(encoding="utf-8")))


def num_labels(labels: list[int]) -> int:
    """Labels that are learned; one on a first token has nothing before it to predict it."""
    return sum(label != IGNORE for label in labels[1:])
