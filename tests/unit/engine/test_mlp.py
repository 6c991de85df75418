"""Gated MLPs with an adapter: what they keep, and that neither outputs nor gradients change by a bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model

from luthier.engine import compiled, lora, mlp
from luthier.engine.instance import is_replaced, relative_error

IDS = torch.randint(3, 400, (1, 13), generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model: Any) -> list[torch.Tensor]:
    torch.manual_seed(5)  # the same values are dropped, if any are
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_computing_again_changes_no_bit(
    family: str, dropout: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "MOST_THREADS", 0)
    model = add_adapter(make_model(family).to(dtype), dropout=dropout).train()
    lora.fuse(model)
    before = loss_and_gradients(model)
    assert mlp.keep_less(model) == len(model.get_decoder().layers)
    after = loss_and_gradients(model)
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("family", "in_loops"), [("llama", True), ("qwen3", True), ("gemma3", False)])
def test_compiled_it_changes_by_rounding(
    family: str, in_loops: bool, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma's activation is no SiLU."""
    model = add_adapter(make_model(family).to(dtype)).train()
    lora.fuse(model)
    before = loss_and_gradients(model)
    mlp.keep_less(model)
    monkeypatch.setattr(compiled, "MOST_THREADS", 10**6)
    after = loss_and_gradients(model)
    assert all(relative_error(a, b) < bound for a, b in zip(after, before, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True)) == in_loops


def test_gate_and_up_alone_are_kept() -> None:
    """Wide tensors, of 96 values a token, of each of two layers: gate, its activation, up and their product before."""
    model = add_adapter(make_model("llama")).train()
    lora.fuse(model)

    def wide() -> int:
        kept = set()

        def pack(saved: torch.Tensor) -> torch.Tensor:
            if saved.shape[-2:] == (13, 96):
                kept.add(saved.untyped_storage().data_ptr())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        return len(kept)

    assert wide() == 2 * 4
    mlp.keep_less(model)
    assert wide() == 2 * 2


def test_adapter_off_is_the_base_model() -> None:
    model = add_adapter(make_model("llama"))
    with torch.no_grad(), model.disable_adapter():
        expected = model(input_ids=IDS).logits
    lora.fuse(model)
    mlp.keep_less(model)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, expected)


def test_without_an_adapter_there_or_with_a_kernel_an_mlp_stays() -> None:
    attention_only = add_adapter(make_model("llama"), targets=["q_proj"])
    lora.fuse(attention_only)
    assert mlp.keep_less(attention_only) == 0
    model = add_adapter(make_model("llama"))
    lora.fuse(model)
    mlp.fuse(model, lambda gate, up: torch.nn.functional.silu(gate) * up, lambda gate, up: gate)
    assert mlp.keep_less(model) == 0
    assert all(is_replaced(layer.mlp) for layer in model.get_decoder().layers)
