"""Micro-batches as CUDA graphs, on a GPU: `pytest tests/gpu`."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from driver import Workplace, events, finished, losses, luthier_process
from gpu.conftest import ON_A_GPU
from parity.test_engines import BATCHES
from tiny import add_adapter, make_model

from luthier.engine import graphs
from luthier.engine.engines import FlatEngine, install
from luthier.engine.graph_trial import time_one, try_out
from luthier.engine.graphs import CannotCapture, Graphs
from luthier.engine.instance import relative_error

pytestmark = ON_A_GPU
ROWS = [row for name in ("three levels", "ragged with a shared prefix", "nothing shared") for row in BATCHES[name][0]]


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_the_gradient_without_a_graph(family: str, share: bool, dtype: torch.dtype) -> None:
    """Of micro-batches that follow each other in one graph and in another, added up."""
    model, engine = add_adapter(make_model(family, dtype=dtype)).train().cuda(), FlatEngine(share=share)
    install(model, engine)
    batches = [ROWS[:4], ROWS[4:8], ROWS, ROWS[2:5]]
    expected = [engine.loss_sum(model, batch) * 0.1 for batch in batches]
    for loss in expected:
        loss.backward()
    without = gradient(model)
    values = [float(loss.detach()) for loss in expected]
    del expected, loss  # a graph cannot be captured while another backward pass is to come
    captured = Graphs(model, engine)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    for _ in range(2):
        model.zero_grad()
        found = [float(captured.backward(batch, 0.1)) for batch in batches]
        assert found == pytest.approx(values, rel=tolerance)
        assert relative_error(gradient(model), without) < tolerance
    assert 1 <= len(captured._captured) <= len(batches)


def test_dropout_is_drawn_anew_by_each_replay() -> None:
    model, engine = (
        add_adapter(make_model("llama", dtype=torch.bfloat16), dropout=0.3).train().cuda(),
        FlatEngine(share=False),
    )
    install(model, engine)
    captured = Graphs(model, engine)
    captured.capture(ROWS)
    assert captured.error() < 1e-3


def test_beyond_the_most_graphs_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = add_adapter(make_model("llama")).train().cuda(), FlatEngine()
    install(model, engine)
    monkeypatch.setattr(graphs, "MOST", 0)
    assert Graphs(model, engine).backward(ROWS, 1.0) is None
    assert all(p.grad is None for p in model.parameters())


def test_a_capture_that_fails_leaves_the_random_numbers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = add_adapter(make_model("llama")).train().cuda(), FlatEngine()
    install(model, engine)
    monkeypatch.setattr(graphs, "no_waiting", contextlib.nullcontext)  # which would have found it before

    def waits(*args: Any) -> torch.Tensor:
        each = own(*args)
        return each * float(each.sum().detach()) / float(each.sum().detach())

    own, engine.token_losses = engine.token_losses, waits  # type: ignore[method-assign]
    torch.manual_seed(7)
    expected = torch.rand(3, device="cuda")
    torch.manual_seed(7)
    with pytest.raises(CannotCapture, match=r"^it cannot be captured "):
        try_out(model, engine, ROWS, drops=False)
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_what_waits_for_the_device_is_found_before_it_is_captured() -> None:
    with pytest.raises(RuntimeError, match="synchronizing"), graphs.no_waiting():
        torch.ones(1, device="cuda").item()


def test_a_training_with_graphs(shop: Workplace) -> None:
    """Learns what it learns without."""
    runs = []
    for asked in (True, False):
        name = f"graphs-{asked}"
        train = {"steps": 4, "batch_size": 8, "cuda_graphs": asked}
        recipe = shop.recipe(name, model={"device": "cuda", "dtype": "bfloat16"}, data={"holdout": 4}, train=train)
        done = finished(luthier_process("train", recipe))
        assert done.status == 0, done.err
        runs.append(shop.run(name))
    with_graphs, without = runs
    assert with_graphs.read_resolved()["train.cuda_graphs"].value is True
    assert losses(with_graphs) == pytest.approx(losses(without), rel=1e-2)
    heldout = [[event["heldout_loss"] for event in events(run, "evaluation")] for run in runs]
    assert heldout[0] == pytest.approx(heldout[1], rel=1e-2)
    assert heldout[0][-1] < heldout[0][0]


def test_a_graph_and_its_capture_are_timed() -> None:
    model, engine = add_adapter(make_model("llama", dtype=torch.bfloat16)).train().cuda(), FlatEngine()
    install(model, engine)
    seconds, capture = time_one(model, engine, ROWS)
    assert 0 < seconds < capture < 60
    assert all(p.grad is None for p in model.parameters())
