"""What run.json holds, as types: what a page may rely on, and what a file changed by hand is checked against.

More keys are welcome: a later Luthier may write them, and an earlier one leaves out those that are NotRequired.
"""

from __future__ import annotations

import functools
from typing import Any

from typing_extensions import NotRequired, TypedDict  # pydantic takes those of `typing` from Python 3.12 on

Loss = float | None
"""Nats a labelled token; None where it was not finite, or not measured."""


class File(TypedDict):
    path: str
    sha256: str
    format: str
    encoding: str
    rows: int


class Ledger(TypedDict):
    read: int
    used: int
    cut: int
    dropped: int
    heldout: int
    duplicate: int
    conflicts: int
    reasons: dict[str, int]
    examples: list[dict[str, str]]


class Lengths(TypedDict):
    tokens: dict[str, int]
    total: int
    labelled: int
    histogram: list[tuple[int, int, int]]


class Data(TypedDict):
    files: list[File]
    ledger: Ledger
    lengths: Lengths
    repeated: NotRequired[int]


class Result(TypedDict):
    """`seconds` and rates are of the steps alone."""

    steps: int
    epochs: float
    rows: int
    seconds: float
    samples_per_second: float
    tokens_per_second: float
    real_tokens: NotRequired[int]
    computed_tokens: NotRequired[int]
    train_loss: Loss
    heldout_loss_before: Loss
    heldout_loss_after: Loss
    end_probability_before: NotRequired[float | None]
    end_probability_after: NotRequired[float | None]
    peak_memory_bytes: int


class BothLosses(TypedDict):
    base: Loss
    tuned: Loss


class Answer(TypedDict):
    prompt: str
    system: str | None
    reference: str | None
    base: str
    tuned: str
    reference_loss: NotRequired[BothLosses]


class MeasuredRow(TypedDict):
    where: str
    prompt: str
    labels: int
    before: Loss
    after: Loss


class Heldout(TypedDict):
    rows: int
    measured: list[MeasuredRow]


class Sample(TypedDict):
    """`pieces`: text, whether it is trained, token ids; None for a gap."""

    where: str
    tokens: int
    cut: bool
    pieces: list[list[Any] | None]


class Record(TypedDict):
    luthier: str
    model: str
    revision: NotRequired[str | None]
    output: str
    environment: dict[str, Any]
    data: Data
    result: Result
    heldout: NotRequired[Heldout]
    answers: list[Answer]
    samples: NotRequired[list[Sample]]
    hashes: NotRequired[dict[str, str]]
    plan: NotRequired[dict[str, Any] | None]


@functools.cache
def _adapter() -> Any:
    from pydantic import TypeAdapter  # takes a while to build: not for `luthier --help`, and once

    return TypeAdapter(Record)


def problems(record: dict[str, Any]) -> list[str]:
    """What of a run.json is not as it should be: `result.steps: Field required`, and so on. Empty for a good one."""
    from pydantic import ValidationError

    try:
        _adapter().validate_python(record)
    except ValidationError as error:
        return [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return []
