"""The parts of a run's memory, to the byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from luthier.training.forecast import memory
from luthier.training.forecast.memory import CONTEXT, KERNELS, LATER, Memory
from luthier.training.forecast.sketch import Taken
from luthier.training.forecast.workload import Workload
from luthier.training.processes import BESIDE

WORK = Workload([], [], [[]], [], [], 1, 1, 1, 0, 0, 0, [0], 0)
SIZES = (10**9, 10**7, 510 * 10**6)
TAKEN = Taken(activations=2 * 10**9, logits=3 * 10**8, kept=15 * 10**8)


def found(device: str, **changed: Any) -> Memory:
    options: dict[str, Any] = {"stored": 0, "runtime": 4 * 10**8, "half": False, **changed}
    return memory.memory(device, SIZES, TAKEN, **options)


@pytest.fixture
def holes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "leaves_holes", lambda: True)


STEADY = {"weights": 10**9, "adapter": 10**7, "gradients": 10**7, "optimizer": 2 * 10**7}
COMPUTING = {**STEADY, "activations": 2 * 10**9, "logits": 3 * 10**8}


def test_on_a_cpu_all_is_in_one_place(holes: None) -> None:
    whole = found("cpu")
    assert whole.device == {
        **COMPUTING,
        "holes": 126 * 10**7,
        "kernels": 0,
        "runtime": 4 * 10**8 + LATER,
    }
    assert (whole.host, whole.phase) == ({}, "steps")
    assert whole.peak == whole.measurable == 5_070_000_000


def test_other_processes_take_all_but_weights_optimizer_and_what_libraries_hold(holes: None) -> None:
    """Three more: each a micro-batch with half the holes, kernels, a gradient and its place, what Python writes to."""
    each = 23 * 10**8 + 63 * 10**7 + KERNELS + 2 * 10**7 + BESIDE
    assert found("cpu", half=True, processes=4).device["other processes"] == 3 * each


def test_where_the_allocator_leaves_no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "leaves_holes", lambda: False)
    assert found("cpu").device["holes"] == 0


def test_in_bfloat16_kernels_for_64_shapes_are_kept() -> None:
    assert found("cpu", half=True).device["kernels"] == 64 * 1_416_000


def test_reading_weights_into_another_dtype_may_be_the_peak() -> None:
    reading = found("cpu", stored=4 * 10**9)
    assert reading.device == {"weights": 10**9, "weight files": 4 * 10**9, "runtime": 4 * 10**8}
    assert reading.phase == "reading"


def test_answers_may_be_the_peak() -> None:
    answering = found("cpu", answers=5 * 10**9)
    assert answering.device == {**STEADY, "keys and values": 5 * 10**9, "kernels": 0, "runtime": 4 * 10**8 + LATER}
    assert answering.phase == "answers"


def test_keys_and_values_of_answers() -> None:
    """As Qwen3 0.6B with six questions of some 90 tokens: twice 8 slots of 256 tokens and of 128, of 114,688 bytes."""
    config = AutoConfig.for_model("qwen3", num_hidden_layers=28, num_key_value_heads=8, head_dim=128)
    work = replace(WORK, questions=6, prompt_tokens=6 * 90)
    assert memory.answers_bytes(config, torch.bfloat16, work) == 2 * 8 * (256 + 128) * 114_688
    assert memory.answers_bytes(config, torch.bfloat16, replace(work, questions=0)) == 0


def test_on_a_gpu() -> None:
    whole = found("cuda")
    assert whole.device == {**COMPUTING, "runtime": CONTEXT}
    assert whole.host == {"weights while read": 10**9, "runtime": 4 * 10**8 + LATER}
    assert (whole.peak, whole.measurable) == (3_940_000_000, 3_340_000_000)
    assert whole.to_json() == {
        "peak_bytes": 3_940_000_000,
        "measurable_bytes": 3_340_000_000,
        "phase": "steps",
        "device": whole.device,
        "host": whole.host,
    }


def test_what_is_offloaded_waits_in_the_host() -> None:
    whole = found("cuda", offloaded=True)
    assert whole.device["activations"] == 5 * 10**8
    assert whole.host["activations"] == 15 * 10**8
