"""What is said of a model on a graphics card that is not here: from its config, and what was recorded of the card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from transformers import AutoConfig

from luthier.hardware import parse
from luthier.recipe.load import as_recipe
from luthier.training import plan as settings
from luthier.training.forecast import common
from luthier.training.forecast.changes import changes
from luthier.training.forecast.plan import Forecast, Room
from luthier.training.forecast.show import verdict

RECORDED = Path(__file__).parents[2] / "hardware" / "recorded"
RTX_4090 = parse.nvidia_smi("NVIDIA GeForce RTX 4090, 24564, 580.65.06, 8.9\n")[0]
MI300X = parse.amd_smi((RECORDED / "amd-smi.txt").read_text(encoding="utf-8"))[0]
RECIPE = as_recipe(
    {
        "model": "Qwen/Qwen3-8B",
        "data": {"train": "rows.jsonl", "max_length": 2048},
        "output": "runs/verdict",
        "train": {"micro_batch_tokens": 2048, "gradient_checkpointing": False},
    }
)
# Qwen3 8B: 36 layers of 4,096, heads of 128, 8 of them for keys and values, 12,288 between; 151,936 words, in and out.
LAYER = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
WEIGHTS = 36 * LAYER + 2 * 151_936 * 4096 + 4096
ADAPTER = 36 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288))


def forecast(memory: int | None, monkeypatch: pytest.MonkeyPatch) -> Forecast:
    assert memory is not None
    monkeypatch.setattr(settings, "available_bytes", lambda device: memory)
    config = AutoConfig.for_model(**next(m["config"] for m in common.models() if m["name"] == "Qwen3 8B"))
    room = Room(memory, 64 * parse.GIB)
    return Forecast(
        config,
        "Qwen/Qwen3-8B",
        None,
        "cuda",
        4 * 10**8,
        lambda: 0.0,
        "flat",
        share=True,
        free=room,
        layer_seconds=mock.Mock(),
    )


def test_a_card_that_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    of = forecast(MI300X.memory_bytes, monkeypatch)
    planned = of.plan(RECIPE, "bfloat16")
    device = planned.memory.device
    assert (device["weights"], device["adapter"], device["gradients"], device["optimizer"]) == (
        2 * WEIGHTS,
        4 * ADAPTER,
        4 * ADAPTER,
        8 * ADAPTER,
    )
    assert verdict(planned) == "It fits: 26.3 GB of 206.1 GB."
    assert changes(RECIPE, planned, of) == []


def test_a_card_for_which_some_layers_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    of = forecast(RTX_4090.memory_bytes, monkeypatch)
    planned = of.plan(RECIPE, "bfloat16")
    assert verdict(planned) == "It does not fit: it needs 26.3 GB, and 25.8 GB are there."
    (change,) = changes(RECIPE, planned, of)
    (layers,) = change.settings.values()
    assert list(change.settings) == ["train.gradient_checkpointing"]
    assert change.plan.fits
    fewer = RECIPE.model_copy(update={"train": RECIPE.train.model_copy(update={"gradient_checkpointing": layers - 1})})
    assert not of.plan(fewer, "bfloat16").fits  # the fewest that are enough


def test_a_card_that_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    of = forecast(8 * parse.GIB, monkeypatch)
    planned = of.plan(RECIPE, "bfloat16")
    assert verdict(planned) == "It does not fit: it needs 26.3 GB, and 8.6 GB are there."
    assert changes(RECIPE, planned, of) == []


def test_the_hosts_memory_may_be_what_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights pass through it."""
    of = forecast(96 * parse.GIB, monkeypatch)
    object.__setattr__(of, "free", Room(96 * parse.GIB, 8 * parse.GIB))
    said = "It does not fit: the host's memory: it needs 16.9 GB, and 8.6 GB are there."
    assert verdict(of.plan(RECIPE, "bfloat16")) == said


def test_memory_is_tried_unless_twice_as_much_is_free_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = forecast(MI300X.memory_bytes, monkeypatch).plan(RECIPE, "bfloat16")
    assert planned.rehearses
    on_cpu = replace(planned, device="cpu", room=Room(2 * planned.memory.peak, 0))
    assert not on_cpu.rehearses
    assert replace(on_cpu, room=Room(2 * planned.memory.peak - 1, 0)).rehearses
