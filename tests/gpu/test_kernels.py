"""The fast paths of a GPU against their plain twins on the same GPU: `pytest tests/gpu` on a machine that has one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from gpu.conftest import ON_A_GPU
from parity.test_engines import BATCHES, distances_to_float32, errors
from tiny import add_adapter, make_model
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import cross_entropy, linear
from unit.engine.test_liger import Ops

from luthier.choice import Choice
from luthier.engine import attention, liger, loss, mlp, norm
from luthier.engine.attention import dense
from luthier.engine.block_attention import in_blocks
from luthier.engine.engines import FlatEngine
from luthier.engine.flash import in_flashes
from luthier.engine.gpu_attention import Flex
from luthier.engine.instance import is_replaced, output_and_gradient, relative_error
from luthier.engine.loss import Head, losses

FAMILIES = ["llama", "qwen3", "gemma3"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
LARGE = [
    *BATCHES["three levels"][0],
    *(row for name in ("ragged with a shared prefix", "nothing shared", "plain text") for row in BATCHES[name][0]),
]
"""Some 250 tokens: more than one tile of FlexAttention."""


KERNELS: list[tuple[str, attention.Kernel]] = [
    ("cpu", in_blocks),
    ("cpu", dense),
    ("cuda", dense),
    ("cuda", Flex(torch.compile(flex_attention, dynamic=True))),
]
CASES = [
    *((device, kernel, share) for device, kernel in KERNELS for share in (True, False)),
    *(("cuda", in_flashes, share) for share in (True, False)),  # which is not for float32
]


def cases(*chosen: tuple[str, attention.Kernel, bool]) -> pytest.MarkDecorator:
    """A device, the kernel that computes attention there whatever would be chosen, and whether prefixes are shared."""
    return pytest.mark.parametrize(
        ("device", "kernel", "share"),
        [pytest.param(*case, marks=ON_A_GPU if case[0] == "cuda" else ()) for case in chosen],
        ids=[
            f"{device}-{getattr(kernel, '__name__', 'flex')}-{'shared' if share else 'whole'}"
            for device, kernel, share in chosen
        ],
    )


def use(kernel: attention.Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "pick_kernel", lambda *_: Choice(kernel, "for this test"))


@cases(*CASES[:-2])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_in_float32(
    family: str, device: str, kernel: attention.Kernel, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(kernel, monkeypatch)
    loss_error, gradient_error = errors(add_adapter(make_model(family)).to(device), FlatEngine(share=share), LARGE)
    assert loss_error < 1e-5
    assert gradient_error < 1e-4


@cases(*CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_in_bfloat16(
    family: str, device: str, kernel: attention.Kernel, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near to float32 as the padded batch of stock transformers."""
    use(kernel, monkeypatch)
    plain, flat = distances_to_float32(family, FlatEngine(share=share), LARGE, device)
    assert 1e-4 < plain < 0.2
    assert flat < 1.3 * plain


@ON_A_GPU
def test_the_chosen_kernels_have_proved_themselves() -> None:
    """No fallback on a GPU that is not older than flash attention."""
    flash, flex = "attention by flash attention", "attention by FlexAttention"
    assert attention.pick_kernel("cuda", torch.bfloat16, 64, True).reason == flash
    assert attention.pick_kernel("cuda", torch.bfloat16, 64, False).reason == flex
    assert attention.pick_kernel("cuda", torch.float32, 64, True).reason == flex


@DTYPES
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_and_gated_mlps(family: str, dtype: torch.dtype, device: str) -> None:
    """Liger's kernels; on a CPU stand-ins."""
    ops = liger.load_ops() if device == "cuda" else Ops()
    if ops is None:
        pytest.skip("liger_kernel is not installed")
    model = make_model(family, dtype=dtype).requires_grad_(False).to(device)
    norms = norm.fuse(model, partial(liger._rms_norm, ops))
    assert mlp.fuse(model, ops.LigerSiLUMulFunction.apply, ops.LigerGELUMulFunction.apply) == 2
    replaced: list[Any] = [module for module in model.modules() if is_replaced(module)]
    assert len(replaced) == norms + 2 > 4
    for module in replaced:
        tolerance = (mlp if hasattr(module, "gate_proj") else norm).TOLERANCE[dtype]
        width = module.gate_proj.in_features if hasattr(module, "gate_proj") else len(module.weight)
        x = torch.randn(1, 33, width, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        stock = output_and_gradient(partial(type(module).forward, module), x)
        for found, expected in zip(output_and_gradient(module, x), stock, strict=True):
            assert relative_error(found, expected) < tolerance


@DTYPES
@pytest.mark.parametrize("cap", [None, 3.0])
def test_head_and_loss_in_chunks(
    cap: float | None, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows of logits at once, against all of them in float32."""
    monkeypatch.setattr(loss, "CHUNK", 3 * 1000)
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(*shape, generator=generator) for shape in ((50, 64), (1000, 64)))
    hidden, weight = hidden.to(device, dtype).requires_grad_(), (0.1 * weight).to(device, dtype)
    targets = torch.randint(0, 1000, (50,), generator=generator).to(device)
    exact = hidden.detach().float().requires_grad_()
    logits = 2.0 * linear(exact, weight.float())
    expected = cross_entropy(logits if cap is None else cap * torch.tanh(logits / cap), targets, reduction="sum")
    expected.backward()
    found = losses(hidden, targets, Head(weight, None, 2.0, cap)).sum()
    found.backward()
    rounding = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert relative_error(found.detach(), expected.detach()) < rounding
    assert hidden.grad is not None and exact.grad is not None
    assert relative_error(hidden.grad, exact.grad) < rounding
