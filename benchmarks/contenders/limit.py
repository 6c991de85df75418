"""No contender: how long the products of the measured steps take when nothing else is done."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.limit import Product, Tokens, count_tokens, merged, products, rate
from benchmarks.meter import versions
from benchmarks.task import RANK, Result, Task, num_labels
from luthier.hardware.compute import flops_text, pick_threads


def run(task: Task) -> Result:
    torch.set_num_threads(pick_threads().value)
    config = AutoConfig.from_pretrained(task.model).get_text_config()
    step = merged(products(config, mean_step(task), RANK))
    timed = [(product, rate(product, task.dtype, task.device)) for product in step]
    parts = by_part(timed)
    flops = sum(product.flops for product in step)
    seconds = sum(part["seconds"] for part in parts.values())
    return Result(
        seconds=seconds * task.steps,
        rows=task.batch_size * task.steps,
        tokens=sum(map(len, task.input_ids[task.measured])),
        labelled=sum(map(num_labels, task.labels[task.measured])),
        losses=[],
        peak_bytes=0,
        same_labels=False,
        notes=[f"{flops * task.steps / 1e12:.2f} TFLOP at {flops_text(flops / seconds)}"],
        versions=versions(),
        extra={"parts": parts},
    )


def mean_step(task: Task) -> Tokens:
    """The tokens of the measured steps, divided by their number: their shapes hardly differ."""
    starts = range(task.batch_size, len(task.input_ids), task.batch_size)
    steps = [slice(start, start + task.batch_size) for start in starts]
    counted = [count_tokens(task.input_ids[step], task.labels[step]) for step in steps]
    return Tokens(
        distinct=sum(step.distinct for step in counted) // len(counted),
        labelled=sum(step.labelled for step in counted) // len(counted),
        contexts=sum(step.contexts for step in counted) // len(counted),
    )


def by_part(timed: list[tuple[Product, float]]) -> dict[str, dict[str, Any]]:
    """FLOP and seconds of one step's parts."""
    parts: dict[str, dict[str, Any]] = defaultdict(lambda: {"flops": 0.0, "seconds": 0.0})
    for product, flops_a_second in timed:
        parts[product.part]["flops"] += product.flops
        parts[product.part]["seconds"] += product.flops / flops_a_second
    return dict(parts)
