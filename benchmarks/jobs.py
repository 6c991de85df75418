"""The jobs: which rows, on which model, in how many steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import SYSTEM_ZH, Row, dialogue, long_rows, one_document, several_turns
from luthier.data.conversation import Conversation, Message, Source
from luthier.data.formats import convert
from luthier.data.render import TrainOn
from luthier.data.sources import read_rows
from luthier.errors import DataError, Problem
from luthier.model import load
from luthier.recipe.schema import DataSettings, ModelSettings

SMOLLM2 = "bundled:smollm2-135m-instruct"


@dataclass(frozen=True)
class Job:
    """`batch_size` rows make an optimizer step; `steps` of them are measured, after one that warms up.

    `padded_batch` rows of this job fit into some 20 GB beside each other when padded, on SmolLM2.
    """

    what: str
    make: Callable[[random.Random, int], list[Row]]
    model: str = SMOLLM2
    batch_size: int = 32
    padded_batch: int = 16
    steps: int = 3
    takes_rows: bool = False  # whether `--rows` replaces the rows made here


JOBS = {
    "huanhuan": Job("short Chinese dialogue under one system prompt", dialogue, takes_rows=True),
    "qwen3": Job("such rows on random weights in the shape of Qwen3", dialogue, model="qwen3-0.6b", takes_rows=True),
    "document": Job("short questions on one long document", one_document, padded_batch=4, steps=1),
    "long": Job("rows of 2,000 to 8,000 tokens", long_rows, batch_size=2, padded_batch=1, steps=1),
    "turns": Job("conversations of three to eight turns", several_turns, padded_batch=8, steps=1),
}


# From files and to tokens --------------------------------------------------------------------------------------------


def read(file: Path, count: int) -> list[Row]:
    """`count` rows of a file in any format that Luthier reads, drawn at random but always the same.

    Rows without a system prompt get the tutorial's. Raises DataError.
    """
    converted = convert(read_rows(file), DataSettings(train=str(file), system=SYSTEM_ZH)).conversations
    if len(converted) < count:
        what = f"holds {len(converted)} rows, and this job takes {count}"
        raise DataError(Problem(str(file), what, "give more rows, or fewer steps: --steps, --batch-size"))
    chosen = random.Random(0).sample(converted, count)
    return [[{"role": m.role, "content": m.content} for m in row.messages] for row in chosen]


@dataclass(frozen=True)
class Rendered:
    """Rows as text and as Luthier's tokens, one sequence a row. `train_on` as in the recipe."""

    messages: list[Row]
    input_ids: list[list[int]]
    labels: list[list[int]]
    train_on: str


def render(rows: Sequence[Row], model: Path) -> Rendered:
    """The rows' tokens. Where a template writes a conversation as several sequences, they become rows in random order.

    Raises DataError for rows that are longer than the model can take.
    """
    tokenizer = load.load_tokenizer(model, ModelSettings(ref=str(model)))
    renderer = load.make_renderer(model, tokenizer, load.pick_thinking(tokenizer, None).value)

    def tokens(train_on: TrainOn) -> list[list[tuple[list[int], list[int]]]]:
        conversations = [Conversation(_messages(row), Source("rows", number)) for number, row in enumerate(rows, 1)]
        found = renderer.examples_of_all(conversations, train_on)
        return [[(example.input_ids, example.labels) for example in examples] for examples in found]

    train_on: TrainOn = "all"
    found = tokens(train_on)
    if any(len(examples) > 1 for examples in found):
        rows = [row[: i + 1] for row in rows for i, message in enumerate(row) if message["role"] == "assistant"]
        random.Random(0).shuffle(rows)
        train_on = "last"
        found = tokens(train_on)
    longest, context = max(len(ids) for row in found for ids, _ in row), load.context_length(model)
    if context is not None and longest > context:
        what = f"takes {context:,} tokens, and the longest row has {longest:,}"
        raise DataError(Problem(str(model), what, "name another model, or other rows"))
    return Rendered(list(rows), [row[0][0] for row in found], [row[0][1] for row in found], train_on)


def _messages(row: Row) -> tuple[Message, ...]:
    roles: Any = [message["role"] for message in row]
    return tuple(Message(role, message["content"]) for role, message in zip(roles, row, strict=True))
