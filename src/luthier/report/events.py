"""The events of events.jsonl, one JSON object a line, in the order in which they happened. See docs/events.md.

A field is never renamed or removed; later versions add events and fields: a reader passes over what it does not know.
`RunFolder.log` adds `time` to each, and writes a number that is not finite as null.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

SCHEMA = 1
"""Raised if a field ever changes its meaning."""


class Start(TypedDict):
    """A session of the run begins after `step`; what earlier sessions did beyond that step is done again."""

    event: Literal["start"]
    step: int
    schema: int
    total_steps: int
    resumed: bool
    flops_per_second: float | None
    """Of plain matrix products of this run's dtype, measured on this machine."""


class Plan(TypedDict):
    """What was planned before the first step: bytes and seconds, by part."""

    event: Literal["plan"]
    step: int
    model: str
    device: str
    dtype: str
    weights: int
    layers: int
    recomputed_layers: int
    micro_batch_tokens: int
    memory: dict[str, Any]
    """`measurable_bytes` is what `memory_bytes` of the steps should come to."""
    room: dict[str, Any]
    fits: bool
    rehearses: bool
    seconds: dict[str, Any] | None
    tokens: dict[str, Any] | None
    products_per_second: float | None
    peak_before: int


class Step(TypedDict):
    """The steps since the last such event: the mean of their losses, the sum of their tokens and seconds."""

    event: Literal["step"]
    step: int
    epoch: float
    loss: float | None
    learning_rate: float
    grad_norm: float | None
    tokens: int
    computed_tokens: int
    seconds: float
    tokens_per_second: float
    mfu: float | None
    """Model FLOPs utilization: the share of `flops_per_second` that the products of weights came to."""
    memory_bytes: int


class Evaluation(TypedDict):
    """Held-out loss, in nats a labelled token."""

    event: Literal["evaluation"]
    step: int
    heldout_loss: float | None
    seconds: float


class Sample(TypedDict):
    """What the model answers now: at each evaluation, to the same prompt."""

    event: Literal["sample"]
    step: int
    prompt: str
    answer: str
    tokens: int
    seconds: float


class Save(TypedDict):
    """A checkpoint is whole; `path` begins at the run's folder."""

    event: Literal["save"]
    step: int
    path: str


class Skip(TypedDict):
    """A step that was not applied, and the rows in it that have no finite loss."""

    event: Literal["skip"]
    step: int
    reason: str
    rows: list[str]


class Memory(TypedDict):
    """Memory ran out after `step`: from here on a micro-batch has at most so many tokens."""

    event: Literal["memory"]
    step: int
    micro_batch_tokens: int


class Stop(TypedDict):
    """Ctrl-C or a signal ended the session, with a checkpoint of `step`."""

    event: Literal["stop"]
    step: int
    reason: str | None


class Fail(TypedDict):
    """An error ended the session."""

    event: Literal["fail"]
    step: int
    reason: str


class Finish(TypedDict):
    """The adapter is saved; answers and record follow."""

    event: Literal["finish"]
    step: int


Event = Start | Plan | Step | Evaluation | Sample | Save | Skip | Memory | Stop | Fail | Finish

KINDS: dict[str, type] = {
    "start": Start,
    "plan": Plan,
    "step": Step,
    "evaluation": Evaluation,
    "sample": Sample,
    "save": Save,
    "skip": Skip,
    "memory": Memory,
    "stop": Stop,
    "fail": Fail,
    "finish": Finish,
}
