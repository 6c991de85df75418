"""RMSNorm's routine against the modules of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import make_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from luthier.engine import norm
from luthier.engine.instance import Replaced

pytestmark = pytest.mark.usefixtures("either_loops")


def module(kind: type[nn.Module], dtype: torch.dtype) -> Any:
    made = kind(32, eps=1e-5)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        made.weight.copy_(torch.randn(32, generator=generator))
    return made.to(dtype).requires_grad_(False)


def value_and_gradient(made: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = (torch.randn(1, 6, 32, generator=generator) * 3).to(dtype).requires_grad_()
    y = made(x)
    y.backward(torch.randn(1, 6, 32, generator=generator).to(dtype))
    return y.detach(), x.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
def test_fused_is_stock(kind: type[nn.Module], dtype: torch.dtype, tolerance: float) -> None:
    made = module(kind, dtype)
    expected = value_and_gradient(made, dtype)
    assert norm.fuse(made) == 1
    for found, reference in zip(value_and_gradient(made, dtype), expected, strict=True):
        assert found.dtype == dtype
        assert (found - reference).norm() < tolerance * reference.norm()


@pytest.mark.parametrize(("family", "norms"), [("llama", 5), ("qwen3", 9), ("gemma3", 13), ("gpt2", 0)])
def test_the_norms_of_each_family(family: str, norms: int) -> None:
    model = make_model(family).requires_grad_(False)
    assert norm.fuse(model) == norms
    assert sum(isinstance(vars(m).get("forward"), Replaced) for m in model.modules()) == norms


def test_a_norm_that_is_trained_stays() -> None:
    assert norm.fuse(module(LlamaRMSNorm, torch.float32).requires_grad_()) == 0


def test_a_norm_that_is_another_stays() -> None:
    class HalfRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) / 2

    assert norm.fuse(module(HalfRMSNorm, torch.float32)) == 0
