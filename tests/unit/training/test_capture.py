"""Whether micro-batches become CUDA graphs: what speaks against it, and what measuring says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model

from luthier.choice import Choice
from luthier.engine.engines import Engine, FlatEngine, PlainEngine
from luthier.engine.graphs import CannotCapture
from luthier.errors import RecipeError
from luthier.recipe.schema import TrainSettings
from luthier.training import capture
from luthier.training.capture import pick_cuda_graphs

ON_A_GPU = type("Device", (), {"type": "cuda"})()


def pick(
    monkeypatch: pytest.MonkeyPatch,
    tried: tuple[float, float] | CannotCapture,
    *,
    engine: Engine | None = None,
    recomputed: int = 0,
    dtype: str = "float32",
    **settings: Any,
) -> Choice[bool]:
    """On a model that says it lies on a GPU, with what trying gives there."""
    model = add_adapter(make_model("llama"))
    device = type("OnAGpu", (type(model),), {"device": ON_A_GPU, "dtype": getattr(torch, dtype)})
    model.__class__ = device

    def try_out(*_: Any, **__: Any) -> tuple[float, float]:
        if isinstance(tried, CannotCapture):
            raise tried
        return tried

    monkeypatch.setattr(capture, "try_out", try_out)
    return pick_cuda_graphs(model, engine or FlatEngine(), TrainSettings(**settings), recomputed, list)


@pytest.mark.parametrize(("with_graph", "chosen"), [(0.038, True), (0.29, False)])
def test_auto_takes_them_where_they_are_faster(
    with_graph: float, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pick(monkeypatch, (0.302, with_graph))
    assert found == Choice(chosen, f"{1e3 * with_graph:.0f} ms a micro-batch, 302 without")


def test_an_explicit_setting_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    slower = 0.3, 0.4
    assert pick(monkeypatch, slower, cuda_graphs=False) == Choice(False, "the recipe asks for it")
    asked = Choice(True, "the recipe asks for it; 400 ms a micro-batch, 300 without")
    assert pick(monkeypatch, slower, cuda_graphs=True) == asked
    assert pick(monkeypatch, slower, cuda_graphs=True, deterministic=True) == asked


@pytest.mark.parametrize(
    ("why", "facts"),
    [
        ("stock transformers waits for the device", {"engine": PlainEngine()}),
        ("layers that are recomputed keep random numbers on the host", {"recomputed": 2}),
        ("activations wait in the host's memory", {"offload_activations": True}),
        ("float16 scales its loss anew at each step", {"dtype": "float16"}),
        ("the same bits are asked for, and what is faster differs", {"deterministic": True}),
    ],
)
def test_what_speaks_against_them(why: str, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    never = CannotCapture("nothing was to be tried")
    assert pick(monkeypatch, never, **facts) == Choice(False, why)


def test_what_cannot_be_captured_is_refused_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    off = CannotCapture("its gradient is off by 3.0e-01")
    assert pick(monkeypatch, off) == Choice(False, "its gradient is off by 3.0e-01")
    with pytest.raises(RecipeError) as refused:
        pick(monkeypatch, off, cuda_graphs=True)
    (problem,) = refused.value.problems
    assert (problem.where, problem.what, problem.fix) == (
        "train.cuda_graphs",
        "its gradient is off by 3.0e-01",
        "leave it at auto",
    )


def test_a_cpu_has_none() -> None:
    found = pick_cuda_graphs(make_model("llama"), FlatEngine(), TrainSettings(), 0, list)
    assert found == Choice(False, "cpu has no CUDA graphs")
