"""A rehearsal leaves the model as it found it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model

from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine.engines import FlatEngine, install
from luthier.engine.graphs import CannotCapture
from luthier.training.forecast import rates, rehearsal


def test_rehearsed_answers_leave_the_weights_where_they_were() -> None:
    """Copies beside a mapped file that stays in use would be held in memory through all steps."""
    model, engine = add_adapter(make_model("llama")), FlatEngine()
    install(model, engine)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    rehearsal._answers(model, rehearsal._Clock(model, "cpu"), 1)
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


def test_a_layer_is_timed_with_each_number_of_threads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in turn. And asked for again, it is what was kept: of this micro-batch, these threads and this model."""
    model, engine = add_adapter(make_model("llama", num_hidden_layers=3)), FlatEngine()
    install(model, engine)
    monkeypatch.setattr(rates, "cache_dir", lambda: tmp_path)
    used: list[int] = []
    measured = rehearsal._step

    def step(*inputs: Any) -> rates.Timed:
        used.append(torch.get_num_threads())
        return measured(*inputs)

    monkeypatch.setattr(rehearsal, "_step", step)
    rows = [Example([5, 6, 7, 8], [IGNORE, 6, 7, 8], Source("rows.json", 1))]
    found = rehearsal.layer_seconds(model, engine, rows, [2, 1])
    assert (list(found), used) == ([2, 1], [2, 1, 2, 1])
    assert all(0 < seconds < 1 for seconds in found.values())
    assert rehearsal.layer_seconds(model, engine, rows, [2, 1]) == found
    assert used == [2, 1] * 2
    rehearsal.layer_seconds(model, engine, [*rows, *rows], [2, 1])
    rehearsal.layer_seconds(model, engine, rows, [2])
    assert used == [2, 1] * 4 + [2, 2]
    assert all(parameter.grad is None for parameter in model.parameters())


def _timed(*layers: float) -> list[rates.Timed]:
    return [rates.Timed(100, 10, 0.4 * seconds, 0.6 * seconds, 0.5) for seconds in layers]


def test_a_layer_of_a_graph_is_what_more_layers_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers in the graph of 0.2 + 3 × 0.1 seconds, and the model has 12; a capture takes as it has layers."""
    model, engine = add_adapter(make_model("llama", num_hidden_layers=3)), FlatEngine()

    def time_one(short: Any, *_: Any) -> tuple[float, float]:
        count = len(short.base_model.model.model.layers)
        return 0.2 + 0.1 * count, 0.3 * count

    monkeypatch.setattr(rehearsal.graph_trial, "time_one", time_one)
    found, capture = rehearsal._as_graphs(model, engine, [[], []], _timed(1.0, 2.0), 12)
    assert [(each.forward, each.backward, each.outside) for each in found] == [pytest.approx((0.0, 0.1, 0.2))] * 2
    assert capture == pytest.approx(0.3 * 12)
    slower = _timed(0.05, 0.05)
    assert rehearsal._as_graphs(model, engine, [[], []], slower, 12) == (slower, 0.0)


def test_what_cannot_be_a_graph_is_timed_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_one(*_: Any) -> tuple[float, float]:
        raise CannotCapture("it waits")

    monkeypatch.setattr(rehearsal.graph_trial, "time_one", time_one)
    without = _timed(1.0)
    assert rehearsal._as_graphs(add_adapter(make_model("llama")), FlatEngine(), [[]], without, 12) == (without, 0.0)
