from __future__ import annotations

from typing import Any

import pytest
from tiny import add_adapter, make_model

from luthier.hardware import compute
from luthier.training import utilization as module
from luthier.training.utilization import Utilization, utilization


@pytest.fixture(autouse=True)
def _rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_rate", lambda device, dtype: 1e9)


def test_the_products_of_a_llama_counted_by_hand() -> None:
    """Two layers of 64 wide: query and output 64 x 64, key and value 64 x 32, three of 64 x 96; LoRA of rank 4."""
    found = utilization(add_adapter(make_model("llama")), "cpu", "float32")
    frozen = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    learned = 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
    assert found == Utilization(token=2 * (4 * frozen + 6 * learned), label=4 * 400 * 64, rate=1e9)


def test_the_share_of_the_machine() -> None:
    found = Utilization(token=2_000, label=500, rate=1e6)
    assert found.share(computed_tokens=400, labels=100, seconds=2.0) == pytest.approx((800_000 + 50_000) / 2e6)
    assert found.share(400, 100, 0.0) is None


def test_every_weight_counts_where_layers_are_convolutions_of_their_own() -> None:
    """GPT-2 has Conv1D for linear layers: query, key and value 64 x 192, output 64 x 64, two of 64 x 256."""
    found = utilization(make_model("gpt2").requires_grad_(False), "cpu", "float32")
    assert found is not None
    assert found.token == 2 * 4 * (64 * 192 + 64 * 64 + 2 * 64 * 256)


def test_nothing_is_said_of_a_mixture_of_experts() -> None:
    assert utilization(make_model("gpt_oss"), "cpu", "float32") is None


def test_nothing_is_said_where_products_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_rate", lambda device, dtype: "no such device")
    assert utilization(make_model("llama"), "cpu", "float32") is None


def test_the_rate_is_measured_in_the_runs_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module, "measure_rate", lambda *what: asked.append(what) or compute.measure_rate(*what))
    found = utilization(make_model("llama"), "cpu", "float32")
    assert asked == [("cpu", "float32")]
    assert found is not None
    assert found.rate == compute.measure_rate("cpu", "float32")
