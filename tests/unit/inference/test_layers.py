"""Decoder layers in fewer calls compute what they did, and leave the model what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import FAMILIES, add_adapter, make_model
from torch import nn

from luthier.engine.instance import is_replaced, relative_error
from luthier.inference.adapters import FIRST, Adapters
from luthier.inference.decode import Decoder, OneByOne, Running
from luthier.inference.layers import CACHE_LINE, CHILDREN, _side_by_side
from luthier.inference.pick import pick_decoder
from luthier.inference.together import Together

FUSED = {"llama", "llama-tied", "llama-all-heads", "qwen2", "qwen3", "mistral", "granite"}


def together(model: Any) -> Together:
    decoder = pick_decoder(Adapters(model.eval()), kept_bytes=1 << 20).value
    assert isinstance(decoder, Together)
    return decoder


def fused(model: Any) -> list[bool]:
    layers = [m for m in model.modules() if {name for name, _ in m.named_children()} == CHILDREN]
    return [is_replaced(layer) for layer in layers]


def logits(decoder: Decoder, adapters: tuple[str | None, ...]) -> torch.Tensor:
    """Behind a prompt of four tokens for each adapter in turn, and behind one token more."""
    requests = [Running([7, 300, 41, 5 + i], adapter) for i, adapter in enumerate(adapters)]
    found = []
    with torch.no_grad():
        for _ in range(2):
            ready, rows = decoder.step(requests)
            found += [rows[ready.index(request)] for request in requests]
            for request in requests:
                request.ids.append(11)
    return torch.stack(found)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"qwen3_5", "lfm2", "nemotron", "gemma4"}))
def test_which_layers_are_of_this_kind(family: str) -> None:
    model = make_model(family)
    together(model)
    assert fused(model) == ([True, True] if family in FUSED else [False] * len(fused(model)))


@pytest.mark.parametrize("family", sorted(FUSED))
def test_the_logits_are_those_of_the_stock_layers(family: str) -> None:
    adapters = (None, FIRST, None, FIRST)
    expected = logits(OneByOne(Adapters(add_adapter(make_model(family)).eval())), adapters)
    model = add_adapter(make_model(family))
    decoder = together(model)
    assert fused(model) == [True, True]
    assert relative_error(logits(decoder, adapters), expected) < 1e-5


def test_a_layer_that_does_more_with_the_same_parts_stays_stock() -> None:
    model = make_model("granite", residual_multiplier=0.5)
    expected = logits(OneByOne(Adapters(make_model("granite", residual_multiplier=0.5).eval())), (None,))
    decoder = together(model)
    assert fused(model) == [False, False]
    assert relative_error(logits(decoder, (None,)), expected) < 1e-5


def test_biases_of_some_layers() -> None:
    def biased() -> Any:
        model = make_model("qwen2")  # q, k and v have biases
        model.model.layers[0].self_attn.k_proj.bias = None
        return model

    expected = logits(OneByOne(Adapters(biased().eval())), (None,))
    model = biased()
    found = logits(together(model), (None,))
    assert fused(model) == [True, True]
    assert relative_error(found, expected) < 1e-5


def test_an_adapter_on_some_layers() -> None:
    def tuned() -> Any:
        return add_adapter(make_model("llama"), targets=["q_proj", "v_proj", "down_proj"])

    expected = logits(OneByOne(Adapters(tuned().eval())), (FIRST, None))
    model = tuned()
    found = logits(together(model), (FIRST, None))
    assert fused(model) == [True, True]
    assert relative_error(found, expected) < 1e-5


def test_weights_that_read_the_same_lie_side_by_side_and_are_saved_as_they_were(tmp_path: Path) -> None:
    make_model("qwen2").save_pretrained(tmp_path / "before")
    model = type(make_model("qwen2")).from_pretrained(tmp_path / "before")
    names = [name for name, _ in model.named_parameters()]
    decoder = together(model)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    for first, second in [
        (attention.q_proj, attention.k_proj),
        (attention.k_proj, attention.v_proj),
        (mlp.gate_proj, mlp.up_proj),
    ]:
        assert second.weight.data_ptr() == first.weight.data_ptr() + first.weight.nbytes
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert {place % CACHE_LINE for name, place in places.items() if "weight" in name} == {0}
    decoder.refresh()  # they are not moved again
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    decoder.close()
    assert not any(is_replaced(module) for module in model.modules())
    assert [name for name, _ in model.named_parameters()] == names
    model.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_changed_weight_is_the_one_that_is_used() -> None:
    """As merging an adapter in place changes it."""
    model = make_model("llama")
    decoder = together(model)
    changed = make_model("llama")
    for each in (model, changed):
        with torch.no_grad():
            each.model.layers[1].self_attn.k_proj.weight.mul_(-1)
    expected = logits(OneByOne(Adapters(changed.eval())), (None,))
    assert relative_error(logits(decoder, (None,)), expected) < 1e-5


def test_layers_with_other_linear_layers_stay_stock() -> None:
    class Other(nn.Linear):
        pass

    model = make_model("llama")
    other = Other(64, 64, bias=False)
    other.weight = model.model.layers[0].self_attn.o_proj.weight
    model.model.layers[0].self_attn.o_proj = other
    together(model)
    assert fused(model) == [False, True]


def test_neighbours_of_two_allocations_are_moved_into_one() -> None:
    values = torch.arange(128.0).view(8, 16)
    array = values.numpy()
    layers = [nn.Linear(16, 4, bias=False) for _ in range(2)]
    for layer, part in zip(layers, (array[:4], array[4:]), strict=True):
        layer.weight.data = torch.from_numpy(part)
    whole, _ = _side_by_side(layers)
    assert torch.equal(whole, values)
    assert [layer.weight.data_ptr() - whole.data_ptr() for layer in layers] == [0, 4 * 16 * 4]
