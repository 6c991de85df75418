"""Which layers Liger's kernels take over, on stand-ins for its functions: the kernels themselves need a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model
from torch import nn
from torch.nn.functional import gelu, silu
from unit.engine.test_choose import ROWS

from luthier.engine import choose, liger, mlp, norm
from luthier.engine.choose import pick_engine
from luthier.engine.engines import FlatEngine
from luthier.engine.instance import is_replaced, output_and_gradient, relative_error, restore


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return silu(gate) * up


def gelu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return gelu(gate, approximate="tanh") * up


def fails(*_: Any) -> torch.Tensor:
    raise RuntimeError("no kernel for this card")


class Ops:
    """As `liger_kernel.ops`; it writes down how its norms were asked for."""

    def __init__(self, *, norms: bool = True, middle: Any = silu_mul) -> None:
        self.asked: set[tuple[float, str, bool]] = set()
        self.LigerRMSNormFunction = SimpleNamespace(apply=self.rms_norm if norms else fails)
        self.LigerSiLUMulFunction = SimpleNamespace(apply=middle)
        self.LigerGELUMulFunction = SimpleNamespace(apply=gelu_mul)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, casting: str, in_place: bool
    ) -> torch.Tensor:
        self.asked.add((offset, casting, in_place))
        return norm.rms_norm(x, weight + offset, eps)


def fused(model: Any) -> set[str]:
    """The classes of the layers that have another forward."""
    return {type(module).__name__ for module in model.modules() if is_replaced(module)}


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets `liger.fuse` see these ops, and a model whose device is a GPU's by name."""

    def see(model: Any, ops: Any) -> list[str]:
        monkeypatch.setattr(liger, "load_ops", lambda: ops)
        monkeypatch.setattr(type(model), "device", torch.device("cuda"))
        return liger.fuse(model)

    return see


@pytest.mark.parametrize(
    ("family", "layers", "asked"),
    [
        ("llama", {"LlamaRMSNorm", "LlamaMLP"}, (0.0, "llama", False)),
        ("qwen3", {"Qwen3RMSNorm", "Qwen3MLP"}, (0.0, "llama", False)),
        ("gemma3", {"Gemma3RMSNorm", "Gemma3MLP"}, (1.0, "gemma", False)),
    ],
)
def test_norms_and_gated_mlps_of_each_family(
    family: str, layers: set[str], asked: tuple[float, str, bool], on_a_gpu: Any
) -> None:
    model = make_model(family).requires_grad_(False)
    ids = torch.arange(3, 12)[None]
    expected = model(input_ids=ids).logits
    ops = Ops()
    assert on_a_gpu(model, ops) == ["norms", "gated MLPs"]
    assert fused(model) == layers
    assert asked in ops.asked
    ops.asked.clear()
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert ops.asked == {asked}
    restore(model)
    assert fused(model) == set()


@pytest.mark.parametrize(("family", "found"), [("phi3", ["norms"]), ("gpt2", [])])
def test_what_a_family_does_not_have(family: str, found: list[str], on_a_gpu: Any) -> None:
    """Phi-3's gate and up are one matrix."""
    assert on_a_gpu(make_model(family).requires_grad_(False), Ops()) == found


def test_a_kernel_that_fails_or_is_off_is_not_used(on_a_gpu: Any) -> None:
    """Its place is taken by the present routine of a norm, and by the stock forward of an MLP."""
    model = make_model("llama").requires_grad_(False)
    assert on_a_gpu(model, Ops(norms=False)) == ["gated MLPs"]
    assert norm.fuse(model) == 5
    restore(model)
    assert on_a_gpu(model, Ops(middle=fails)) == ["norms"]
    assert norm.fuse(model) == 0
    restore(model)
    assert on_a_gpu(model, Ops(middle=lambda gate, up: silu(gate) * up * 1.01)) == ["norms"]
    restore(model)
    wrong_gradient = Ops(middle=lambda gate, up: silu(gate) * up.detach())
    assert on_a_gpu(model, wrong_gradient) == ["norms"]


def test_neither_off_the_gpu_nor_without_the_package(monkeypatch: pytest.MonkeyPatch, on_a_gpu: Any) -> None:
    model = make_model("llama").requires_grad_(False)
    assert on_a_gpu(model, None) == []
    monkeypatch.undo()
    monkeypatch.setattr(liger, "load_ops", Ops)
    assert liger.fuse(model) == []
    assert fused(model) == set()


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "liger_kernel", None)
    assert liger.load_ops() is None


def test_an_mlp_of_more_parts_or_another_activation_stays() -> None:
    model = make_model("llama").requires_grad_(False)
    first, second = (layer.mlp for layer in model.model.layers)
    first.dropout = nn.Dropout(0.1)
    second.act_fn = nn.GELU()  # exact: 5e-4 from the kernel's
    assert mlp.fuse(model, silu_mul, gelu_mul) == 0


def test_an_mlp_with_adapters_in_training() -> None:
    """Dropout does not speak against it, and modes stay as they were."""
    model = add_adapter(make_model("llama"), dropout=0.5).train()
    model.get_base_model().model.norm.eval()
    assert mlp.fuse(model, silu_mul, gelu_mul) == 2
    assert [type(m).__name__ for m in model.modules() if not m.training] == ["LlamaRMSNorm"]
    module = model.eval().get_base_model().model.layers[0].mlp
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1))
    found = output_and_gradient(module, x)
    restore(module)
    for pair in zip(found, output_and_gradient(module, x), strict=True):
        assert relative_error(*pair) < 1e-6


def test_the_user_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.engine.engines.liger.fuse", lambda model: ["norms", "gated MLPs"])
    monkeypatch.setattr(choose, "_attention", lambda model: "attention by FlexAttention")
    choice = pick_engine(add_adapter(make_model("llama")), ROWS, asked="auto")
    assert isinstance(choice.value, FlatEngine)
    assert choice.reason.startswith(
        "no padding, shared prefixes computed once, attention by FlexAttention, norms and gated MLPs by Liger kernels; "
        "the flat loss differs"
    )
