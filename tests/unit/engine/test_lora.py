"""The fused LoRA layers against PEFT's own: outputs, gradients, what is kept, and when they stand aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import add_adapter, make_model
from torch import nn

from luthier.engine import lora
from luthier.engine.instance import Replaced, restore

IDS = torch.randint(3, 400, (1, 13), generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)  # the same values are dropped, if any are
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_fused_is_peft(family: str, dropout: float) -> None:
    """qwen2 has biases, phi3 one layer for q, k and v. With a seed both draw the same dropout."""
    model = add_adapter(make_model(family), dropout=dropout).train()
    expected, expected_gradients = loss_and_gradients(model)
    assert sum(map(len, lora.fuse(model))) == len(expected_gradients) / 2
    loss, gradients = loss_and_gradients(model)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() < 1e-5 * gradient.norm()


def test_factors_made_all_at_once_are_the_same() -> None:
    model = add_adapter(make_model("llama")).train()
    groups = lora.fuse(model)
    loss, expected = loss_and_gradients(model)
    with lora.prepared(groups):
        found_loss, found = loss_and_gradients(model)
        down, up = lora._at_hand(groups[0]) or ((), ())
    assert len(down) == 3 * 4 and [tuple(b.shape) for b in up] == [(64, 4), (32, 4), (32, 4)]
    assert lora._at_hand(groups[0]) is None
    assert torch.equal(found_loss, loss)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_layers_with_one_input_are_computed_together() -> None:
    model = add_adapter(make_model("llama"))
    groups = lora._sharing_an_input(model)
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    one_layer = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert [[names[layer] for layer in group] for group in groups] == one_layer * 2


def test_only_the_input_is_kept_for_the_backward() -> None:
    model = add_adapter(make_model("llama"))
    layers = lora._sharing_an_input(model)[0]
    x = torch.randn(1, 7, 64, requires_grad=True)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(tuple(saved.shape)) or saved, lambda t: t):
        lora.lora_linears(x, layers)
    rank = 4
    matrices = [(rank, 64), (64, rank), (rank, 64), (32, rank), (rank, 64), (32, rank)]
    assert kept == [(1, 7, 64), (7, 3 * rank), *matrices]


def test_an_output_that_nobody_uses_has_no_gradient() -> None:
    model = add_adapter(make_model("llama"))
    q, k, v = lora._sharing_an_input(model)[0]
    x = torch.randn(1, 5, 64, requires_grad=True)
    lora.lora_linears(x, [q, k, v])[1].sum().backward()
    found = x.grad.clone()
    x.grad = None
    k(x).sum().backward()
    torch.testing.assert_close(found, x.grad)
    assert q.lora_B["default"].weight.grad is None
    assert torch.count_nonzero(q.lora_A["default"].weight.grad) == 0


def test_adapter_off_is_the_base_model() -> None:
    model = add_adapter(make_model("llama")).eval()
    with torch.no_grad(), model.disable_adapter():
        expected = model(input_ids=IDS).logits
        lora.fuse(model)
        assert torch.equal(model(input_ids=IDS).logits, expected)


def test_no_activation_outlives_its_step() -> None:
    model = add_adapter(make_model("llama"))
    lora.fuse(model)
    model(input_ids=IDS)
    for module in model.modules():
        if isinstance(vars(module).get("forward"), Replaced):
            group = module.forward.func.__self__
            assert (group._input, group._outputs) == (None, {})


def test_restore_undoes_it() -> None:
    model = add_adapter(make_model("llama"))
    lora.fuse(model)
    restore(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_more_than_lora_stays_with_peft(settings: dict[str, bool]) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **settings)
    model = get_peft_model(make_model("llama"), config)
    assert lora.fuse(model) == []


def test_a_layer_that_is_no_linear_stays_with_peft() -> None:
    assert lora.fuse(add_adapter(make_model("gpt2"))) == []


def test_products_run_in_the_dtype_of_the_weights_over_float32_masters() -> None:
    model = add_adapter(make_model("llama", dtype=torch.bfloat16))
    layers = lora._sharing_an_input(model)[0]
    x = torch.randn(1, 5, 64, dtype=torch.bfloat16, requires_grad=True)
    outputs = lora.lora_linears(x, layers)
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    sum(y.float().sum() for y in outputs).backward()
    learned = [m.weight for layer in layers for m in (layer.lora_A["default"], layer.lora_B["default"])]
    assert {m.dtype for m in learned} == {m.grad.dtype for m in learned} == {torch.float32}
    assert isinstance(layers[0].base_layer, nn.Linear)


def test_what_a_young_adapter_adds_is_not_rounded_away() -> None:
    """It adds 2^-10 to sums whose last bit is 2^-5 or so. PEFT adds it to the rounded ones, where it vanishes."""
    generator, added = torch.Generator().manual_seed(0), 2.0**-10
    x, weight = (torch.randn(rows, 64, generator=generator).to(torch.bfloat16) for rows in (1000, 64))
    x[:, 0] = 1
    down = nn.functional.one_hot(torch.tensor([0]), 64).float()  # [1, 64]: reads the one
    frozen = [lora._Frozen(weight, None, 1.0)]
    without, ours = (lora._apply(x, None, frozen, None, down, torch.full((64, 1), b))[0].float() for b in (0.0, added))
    assert float((ours - without).mean()) == pytest.approx(added, rel=0.1)
    twice_rounded = (without.to(torch.bfloat16) + torch.tensor(added, dtype=torch.bfloat16)).float()
    assert float((twice_rounded - without).mean()) < added / 4
