"""Which graph takes a micro-batch, and what becomes of its gradient: on a CPU, where a replay computes again."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parity.test_engines import BATCHES
from tiny import add_adapter, make_model

from luthier.data.render import Example
from luthier.engine import attention, graphs
from luthier.engine.attention import dense
from luthier.engine.engines import FlatEngine, install
from luthier.engine.graphs import CannotCapture, Graphs, captures
from luthier.engine.instance import relative_error

ROWS: list[Example] = BATCHES["nothing shared"][0]
LONG = [Example(row.input_ids * 30, row.labels * 30, row.source) for row in ROWS]


class ComputedAgain(Graphs):
    """A graph's replay is its computation."""

    def _warm_up(self, inputs: graphs._Inputs) -> None:
        pass

    def _capture(self, inputs: graphs._Inputs) -> Any:
        loss = torch.zeros(())

        def replay() -> None:
            found, gradients = self._compute(inputs)
            torch._foreach_add_(self._sums, gradients)
            loss.copy_(found)

        return graphs._Captured(SimpleNamespace(replay=replay), inputs, loss)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(graphs, "random_numbers_survive", contextlib.nullcontext)
    token = attention.standing_in.set(dense)
    found = add_adapter(make_model("llama")).train()
    install(found, FlatEngine())
    yield found
    attention.standing_in.reset(token)


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


def test_gradients_add_up_with_those_of_micro_batches_without_a_graph(model: Any) -> None:
    engine = FlatEngine()
    for batch in (ROWS, ROWS[1:], ROWS[:2]):
        (0.5 * engine.loss_sum(model, batch)).backward()
    expected = gradient(model)
    captured = ComputedAgain(model, engine)
    for _ in range(2):  # the second step begins with none
        model.zero_grad()
        (0.5 * engine.loss_sum(model, ROWS[1:])).backward()
        first = captured.backward(ROWS, 0.5)
        assert first is not None
        (0.5 * engine.loss_sum(model, ROWS[:2])).backward()
        assert relative_error(gradient(model), expected) < 1e-5
    torch.testing.assert_close(first, 0.5 * engine.loss_sum(model, ROWS).detach())


def test_like_sizes_share_a_graph_and_others_get_their_own(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = ComputedAgain(model, FlatEngine())
    for batch in (ROWS, ROWS[1:], LONG, ROWS):
        captured.backward(batch, 1.0)
    assert len(captured._captured) == 2
    engine, sizes = captured.engine, [graph.inputs.shape.tokens for graph in captured._captured]
    own = [engine.cost(batch) for batch in (ROWS, ROWS[1:], LONG, ROWS)]
    assert captured.take_filled() == 3 * sizes[0] + sizes[1] - sum(own)
    assert captured.take_filled() == 0
    assert captures(own) == 2
    captured._most = 2
    model.zero_grad()
    assert captured.backward(LONG * 3, 1.0) is None
    assert all(p.grad is None for p in model.parameters())
    assert captured.backward(ROWS, 1.0) is not None


def test_what_is_captured_first_warms_up_and_what_fails_without(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    captured, done = ComputedAgain(model, FlatEngine()), []
    own = captured._capture

    def capture(inputs: graphs._Inputs) -> Any:
        done.append("capture")
        if done == ["warm up", "capture", "capture"]:
            raise RuntimeError("a kernel is written")
        return own(inputs)

    monkeypatch.setattr(captured, "_capture", capture)
    monkeypatch.setattr(captured, "_warm_up", lambda inputs: done.append("warm up"))
    for batch in (ROWS, LONG, LONG * 3):
        assert captured.backward(batch, 1.0) is not None
    assert done == ["warm up", "capture", "capture", "warm up", "capture", "capture"]


def test_a_capture_that_fails_in_a_run_is_the_last(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    captured = ComputedAgain(model, FlatEngine())
    captured.backward(ROWS, 1.0)

    def fails(*_: Any) -> Any:
        raise RuntimeError("CUDA error: operation not permitted\nsee the manual")

    monkeypatch.setattr(captured, "_capture", fails)
    assert captured.backward(LONG, 1.0) is None
    assert captured.backward(LONG, 1.0) is None
    assert capsys.readouterr().err.count("no more CUDA graphs, so some steps take longer: CUDA error: operation") == 1
    assert captured.backward(ROWS, 1.0) is not None

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    captured._most = 9
    monkeypatch.setattr(captured, "_capture", full)
    with pytest.raises(torch.OutOfMemoryError):  # which the trainer answers
        captured.backward(LONG, 1.0)


def test_what_drops_is_compared_with_the_same_random_numbers(model: Any) -> None:
    dropping = add_adapter(make_model("llama"), dropout=0.3).train()
    engine = FlatEngine(share=False)
    install(dropping, engine)
    captured = ComputedAgain(dropping, engine)
    captured.capture(ROWS)
    before = torch.random.get_rng_state()
    assert captured.error() == 0
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(CannotCapture, match="the same each time"):  # as nothing is dropped here
        same = ComputedAgain(model, engine)
        same.capture(ROWS)
        same.error()


def test_how_many_graphs_sizes_take() -> None:
    assert captures([900, 1000, 1010, 3000]) == 2
    assert captures([3000, 1000]) == 2  # which would waste two thirds of a graph of 3,000
    assert captures([200 * size for size in range(1, 2000, 7)]) <= graphs.MOST
