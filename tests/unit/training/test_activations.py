"""What is kept between forward and backward: counted, recomputed, or moved away, with the same gradient."""

from __future__ import annotations

import gc
from typing import Any
from unittest import mock

import pytest
import torch
from tiny import add_adapter, make_model

from luthier.data.conversation import Source
from luthier.data.render import Example
from luthier.engine.engines import Engine, FlatEngine, PlainEngine, install
from luthier.training import activations
from luthier.training.activations import Activations

ROWS = [Example(ids, ids, Source("rows.json", 1)) for ids in ([5, 6, 7, 8] * 8, [5, 6, 9] * 6, [3, 2])]


def tuned(family: str = "llama", *, layers: int = 4, dropout: float = 0.0) -> Any:
    model = add_adapter(make_model(family, num_hidden_layers=layers), dropout=dropout)
    install(model, FlatEngine())
    return model


def gradients(model: Any, *, dropout_seed: int = 0) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(dropout_seed)
    model.train()
    loss = FlatEngine(share=False).loss_sum(model, ROWS)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return float(loss.detach()), list(torch.autograd.grad(loss, weights))


def kept_bytes(model: Any) -> int:
    """Of the tensors that autograd keeps for a backward pass over all rows, weights included, each memory once."""
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        _loss = FlatEngine(share=False).loss_sum(model, ROWS)
    return sum(kept.values())


def test_the_gradient_is_the_same_and_less_is_kept_with_each_layer_recomputed() -> None:
    """With dropout, so that the recomputed forward must draw the same masks."""
    loss, expected = gradients(tuned(dropout=0.1))
    kept = [kept_bytes(tuned(dropout=0.1))]
    for count in (1, 2, 4):
        model = tuned(dropout=0.1)
        activations.recompute(model, count)
        found_loss, found = gradients(model)
        assert found_loss == loss
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert [layer.gradient_checkpointing for layer in activations.decoder_layers(model)] == (
            [True] * count + [False] * (4 - count)
        )
        kept.append(kept_bytes(model))
    first, second, later = kept[0] - kept[1], kept[1] - kept[2], (kept[2] - kept[3]) / 2
    assert second == pytest.approx(later, rel=0.02)
    assert 0.8 * second < first < second  # nothing before the first layer is trained, so its first norm keeps nothing
    assert later > 0.15 * kept[0]


def test_nothing_is_changed_where_no_layer_is_recomputed() -> None:
    model = tuned()
    activations.recompute(model, 0)
    assert [layer.gradient_checkpointing for layer in activations.decoder_layers(model)] == [False] * 4


@pytest.mark.parametrize(("family", "layers"), [("llama", 2), ("gemma3", 2), ("gpt2", 2), ("qwen3_5", 2)])
def test_the_layers_of_a_model(family: str, layers: int) -> None:
    assert len(activations.decoder_layers(add_adapter(make_model(family)))) == layers


@pytest.mark.parametrize("engine", [FlatEngine(), PlainEngine()], ids=["flat", "plain"])
def test_what_is_measured_is_what_a_batch_keeps(engine: Engine) -> None:
    """Measured on 32 tokens, true of 96."""
    model = tuned()
    install(model, engine)
    row = Example(list(range(10, 106)), list(range(10, 106)), Source("rows.json", 1))
    found = activations.measure(model, engine, [row])
    logits = 3 * 4 * 400 * 95 / 96 if engine.keeps_logits else 0
    assert (found.layers, found.recomputed, found.outside) == (4, 4 * 64, logits)
    whole = activations._kept_bytes(model, activations.decoder_layers(model), engine, row)
    assert 4 * found.kept * 96 == pytest.approx(whole, rel=0.1)


def test_measuring_leaves_no_trace() -> None:
    model = tuned(dropout=0.1).eval()
    state = torch.get_rng_state()
    activations.measure(model, FlatEngine(), ROWS)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in activations.decoder_layers(model))


def test_a_model_that_cannot_recompute_is_all_outside() -> None:
    model = tuned()
    with mock.patch.object(activations, "decoder_layers", lambda model: []):
        found = activations.measure(model, FlatEngine(), ROWS)
    assert (found.layers, found.kept) == (0, 0)
    assert found.bytes_per_token(0) == found.outside > 4 * 14 * 64 * 4


def test_as_few_layers_as_make_it_fit() -> None:
    found = Activations(layers=10, kept=100, recomputed=10, outside=50)
    assert [found.bytes_per_token(count) for count in (0, 1, 10)] == [1050, 960, 150]
    for room, layers in ((10500, 0), (10499, 1), (9600, 1), (9599, 2), (1500, 10), (100, 10)):
        assert found.layers_to_recompute(10, room) == layers


def test_offloading_gives_the_same_gradient_and_keeps_weights_where_they_are() -> None:
    loss, expected = gradients(tuned())
    model = tuned()
    moved: list[int] = []
    copy = torch.Tensor.copy_

    def counted(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        moved.append(self.nbytes)
        return copy(self, *args, **kwargs)

    with (
        mock.patch.object(activations, "SMALLEST_OFFLOADED", 4096),
        mock.patch.object(torch.Tensor, "copy_", counted),
        activations.offloaded(model),
    ):
        found_loss, found = gradients(model)
    assert found_loss == loss
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    largest_weight = max(weight.nbytes for weight in model.parameters())
    assert moved and min(moved) >= 4096 and largest_weight not in moved


def graph_nodes() -> int:
    gc.collect()
    return sum(isinstance(thing, torch.autograd.function.BackwardCFunction) for thing in gc.get_objects())


def test_nothing_outlives_what_it_was_kept_for() -> None:
    """A node that keeps its own output through a hook would never be freed, and all before it with it."""
    model, engine = tuned(), FlatEngine()
    before = graph_nodes()
    activations.measure(model, engine, ROWS[:1])
    assert graph_nodes() == before
    with activations.offloaded(model):
        engine.loss_sum(model, ROWS[:1])  # no backward pass, as when memory runs out
    assert graph_nodes() == before
