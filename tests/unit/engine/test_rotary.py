"""Rotary embeddings in a loop against the functions of transformers' modules."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from tiny import make_model
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved
from transformers.models.gemma3n.modeling_gemma3n import apply_rotary_pos_emb as one_at_a_time
from transformers.models.llama import modeling_llama
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as of_a_part

from luthier.engine import compiled, rotary
from luthier.engine.instance import Replaced, restore

whole = modeling_llama.apply_rotary_pos_emb


@pytest.fixture(autouse=True)
def _loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MOST_THREADS", 10**6)


def inputs(dtype: torch.dtype, *, turned: int = 8) -> list[Tensor]:
    """query [1, 4, 6, 8], key [1, 2, 6, 8], as a model's views; cos and sin whose halves differ, [1, 6, turned]."""
    generator = torch.Generator().manual_seed(3)
    heads = [torch.randn(1, 6, count, 8, generator=generator).to(dtype).transpose(1, 2) for count in (4, 2)]
    return [*heads, *torch.randn(2, 1, 6, turned, generator=generator).to(dtype)]


def rotated_and_gradients(rotation: Any, dtype: torch.dtype, **how: int) -> list[Tensor]:
    query, key, cos, sin = inputs(dtype, **how)
    learned = [query.requires_grad_(), key.requires_grad_()]
    found = rotation(*learned, cos, sin)
    slopes = [torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y) for y in found]
    return [*found, *torch.autograd.grad(found, learned, slopes)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("own", "turned"), [(whole, 8), (of_a_part, 8), (of_a_part, 4)])
def test_a_loop_is_stock(own: Any, turned: int, dtype: torch.dtype, tolerance: float) -> None:
    expected = rotated_and_gradients(own, dtype, turned=turned)
    loop = rotary._Rotated(own)
    for found, reference in zip(rotated_and_gradients(loop, dtype, turned=turned), expected, strict=True):
        assert (found.dtype, found.shape) == (dtype, reference.shape)
        assert (found - reference).norm() < tolerance * reference.norm()
    assert loop._same == {dtype: True}


def test_a_loop_rounds_once() -> None:
    exact = whole(*(x.double() for x in inputs(torch.bfloat16)))[0]
    off = [(way(*inputs(torch.bfloat16))[0] - exact).norm() for way in (rotary._Rotated(whole), whole)]
    assert off[0] < 0.8 * off[1]


def test_another_rotation_stays() -> None:
    loop = rotary._Rotated(interleaved)
    for found, expected in zip(loop(*inputs(torch.float32)), interleaved(*inputs(torch.float32)), strict=True):
        assert torch.equal(found, expected)
    assert loop._same == {torch.float32: False}


def test_what_is_called_in_another_way_stays() -> None:
    query, _, cos, sin = inputs(torch.float32)
    found = rotary._Rotated(one_at_a_time)(query, cos, sin, unsqueeze_dim=1)
    assert torch.equal(found, one_at_a_time(query, cos, sin, unsqueeze_dim=1))


@pytest.mark.parametrize(("family", "layers"), [("llama", 2), ("qwen3", 2), ("phi3", 2), ("gpt2", 0)])
def test_the_attention_of_each_family(family: str, layers: int) -> None:
    model = make_model(family).requires_grad_(False)
    assert rotary.fuse(model) == layers
    assert sum(isinstance(vars(m).get("forward"), Replaced) for m in model.modules()) == layers
    assert rotary.fuse(model) == 0  # again


def test_a_method_of_that_name_stays() -> None:
    class Own(nn.Module):
        def apply_rotary_pos_emb(self, x: Tensor) -> Tensor:
            return -x

        def forward(self, x: Tensor) -> Tensor:
            return self.apply_rotary_pos_emb(x)

    assert rotary.fuse(Own()) == 0


def test_the_module_and_other_models_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = mock.Mock(wraps=compiled.rotate)
    monkeypatch.setattr(compiled, "rotate", turned)
    one, other = make_model("llama"), make_model("llama")
    before = dict(vars(modeling_llama))
    rotary.fuse(one)
    assert dict(vars(modeling_llama)) == before
    assert not any(isinstance(vars(m).get("forward"), Replaced) for m in other.modules())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(one(ids).logits, other(ids).logits, rtol=1e-4, atol=1e-5)
    of_the_proof, of_two_layers = 2, 4
    assert turned.call_count == of_the_proof + of_two_layers
    restore(one)
    with torch.no_grad():
        assert torch.equal(one(ids).logits, other(ids).logits)


def test_the_proof_keeps_nothing_for_the_backward() -> None:
    """A layer whose forward is run again must keep as many tensors then as in its first."""
    query, key, cos, sin = inputs(torch.float32)
    loop, kept = rotary._Rotated(whole), [0]

    def count(tensor: Tensor) -> Tensor:
        kept[-1] += 1
        return tensor

    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loop(query.requires_grad_(), key.requires_grad_(), cos, sin)
        kept.append(0)
    assert kept == [4, 4, 0]
