"""The compiled loops against formulas of torch in float64: what they give, and what they must not hide."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, silu

from luthier.engine import compiled
from luthier.engine.tiles import Tile, between

NAN, INF = float("nan"), float("inf")
ALL = slice(0, None)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(of: Callable[..., Tensor], g: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The result and the gradients, in float64."""
    exact = [x.double().requires_grad_() for x in inputs]
    y = of(*exact)
    return [y.detach(), *torch.autograd.grad(y, exact, g.double())]


def near(found: Tensor, expected: Tensor) -> bool:
    """float32 to a few of its last bits, bfloat16 to one of its own."""
    bound = 1e-6 if found.dtype == torch.float32 else 4e-3
    return bool((found.double() - expected).norm() <= bound * expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(dtype: torch.dtype) -> None:
    x, g, weight = normal(2, 7, 33).to(dtype), normal(2, 7, 33, seed=1).to(dtype), normal(33, seed=2)
    y, dx = gradients(lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double(), g, x)
    found, r = compiled.rms_norm(x, weight, 1e-5)
    assert (found.dtype, found.shape, r.shape) == (dtype, (2, 7, 33), (2, 7, 1))
    assert near(found, y)
    assert near(compiled.rms_norm_backward(g, x, weight, r), dx)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu(dtype: torch.dtype) -> None:
    gate, up, g = (normal(5, 70, seed=seed).to(dtype) for seed in range(3))
    gate[0, :4] = torch.tensor([-300.0, 300.0, 0.0, -87.5])
    y, d_gate, d_up = gradients(lambda gate, up: silu(gate) * up, g, gate, up)
    assert near(compiled.swiglu(gate, up), y)
    for found, expected in zip(compiled.swiglu_backward(g, gate, up), (d_gate, d_up), strict=True):
        assert near(found, expected)


def test_what_lies_otherwise_in_memory() -> None:
    gate, up = normal(70, 5), normal(70, 5, seed=1)
    assert torch.equal(compiled.swiglu(gate.T, up.T), compiled.swiglu(gate, up).T)
    one = torch.ones(70)
    spread = torch.ones(1).expand(5, 70)
    y, r = compiled.rms_norm(gate.T, one, 0.0)
    assert torch.equal(y, compiled.rms_norm(gate.T.contiguous(), one, 0.0)[0])
    expected = compiled.rms_norm_backward(torch.ones(5, 70), gate.T.contiguous(), one, r)
    assert torch.equal(compiled.rms_norm_backward(spread, gate.T, one, r), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dots(dtype: torch.dtype) -> None:
    a, b = normal(3, 5, 70).to(dtype), normal(3, 5, 70, seed=1).to(dtype)
    found = compiled.dots(a, b)
    assert (found.dtype, found.shape) == (torch.float32, (3, 5, 1))
    assert near(found, (a.double() * b.double()).sum(-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy(dtype: torch.dtype) -> None:
    logits, targets = normal(4, 1000).to(dtype), torch.tensor([0, 999, 5, 5])
    logits[1, 3] = 90.0  # far above all others, and not what should come next
    expected, of_logits = gradients(lambda x: cross_entropy(x, targets, reduction="none"), torch.ones(4), logits)
    before = logits.clone()
    assert near(compiled.cross_entropy(logits, targets, gradient=False), expected)
    assert torch.equal(logits, before)
    assert near(compiled.cross_entropy(logits, targets, gradient=True), expected)
    assert near(logits, of_logits)


def test_small_probabilities_count() -> None:
    """100,000 of e^-17, each less than half the last bit of 1: together 0.0041."""
    logits = torch.full((1, 100_001), -17.0)
    logits[0, 0] = 0.0
    found = compiled.cross_entropy(logits, torch.tensor([0]), gradient=False)
    assert found.item() == pytest.approx(math.log1p(1e5 * math.exp(-17)), abs=2e-6)


@pytest.mark.parametrize(("behind", "before"), [(3, -9), (1, -9), (100, -9), (3, -1), (-2, -9), (9, 4), (-9, -20)])
def test_scores_that_are_seen(behind: int, before: int) -> None:
    """Of three heads, seven queries, nine keys; some queries see none."""
    scores, gradient = normal(3, 7, 9).bfloat16(), normal(3, 7, 9, seed=1).bfloat16()
    tile = Tile(ALL, ALL, None, (behind, before))
    seen = between(torch.ones(7, 9, dtype=torch.bool), behind - 1, before)
    hidden = scores.float().masked_fill(~seen, -INF)
    assert torch.equal(compiled.tops(scores, tile), hidden.amax(-1, keepdim=True))

    p = hidden.exp().bfloat16()
    weights, of_scores = scores.clone(), gradient.clone()
    totals = compiled.weigh(weights, tile)
    assert torch.allclose(weights, p, rtol=8e-3, atol=0)  # one last bit
    assert torch.equal(weights == 0, ~seen.expand(3, 7, 9))
    assert torch.allclose(totals, weights.float().sum(-1, keepdim=True))
    compiled.weigh_backward(scores, of_scores, tile)
    assert torch.equal(scores, weights)
    assert torch.allclose(of_scores, p * gradient, rtol=2e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [NAN, -NAN, INF])
def test_what_is_no_number_is_not_hidden(wrong: float, dtype: torch.dtype) -> None:
    """A run whose numbers have gone must be seen to."""
    x = normal(1, 40).to(dtype)
    x[0, 7] = wrong
    y, r = compiled.rms_norm(x, torch.ones(40), 1e-5)
    assert not y.isfinite().all()
    assert not compiled.rms_norm_backward(torch.ones_like(x), x, torch.ones(40), r).isfinite().all()
    assert not compiled.swiglu(x, torch.ones_like(x)).isfinite().all()
    assert not compiled.rotate(x.view(1, 1, 4, 10), *torch.ones(2, 1, 1, 8, dtype=dtype)).isfinite().all()
    assert not compiled.cross_entropy(x.clone(), torch.tensor([3]), gradient=False).isfinite().all()
    if wrong != INF:
        weights = x[None].clone()
        assert compiled.weigh(weights, Tile(ALL, ALL, None, (40, -1))).isnan().all()
        assert weights[0, 0, 7].isnan()


BITS = """
import torch
from luthier.engine import compiled
from luthier.engine.tiles import Tile

torch.manual_seed(0)
x, y = torch.randn(2, 8, 100)
print(compiled.find().reason)  # which compiles nothing
torch.set_num_threads(1)
assert compiled.fits(x)
scores = x[None].bfloat16()
print(compiled.swiglu(x, y).tolist(), compiled.cross_entropy(x, torch.arange(8), gradient=True).tolist(), x.tolist())
print(compiled.rotate(x[None, :, None], y[None, :, :6], y[None, :, 6:12]).tolist())
print(compiled.weigh(scores, Tile(slice(8), slice(100), None, (90, -9))).tolist(), scores.tolist())
"""


def test_the_same_bits_compiled_and_kept(tmp_path: Path) -> None:
    """A run that goes on must compute what it would have: parts compiled for themselves once made a difference."""

    def computed() -> str:
        with_cache = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        return subprocess.check_output([sys.executable, "-c", BITS], env=with_cache, text=True)

    reason, said, compiled_now = computed().split("\n", 2)
    assert said == "Compiling loops, once on this machine …"
    compiled_now = f"{reason}\n{compiled_now}"
    assert [*tmp_path.glob("*/loops.cross_entropy-*.nbi")]
    assert computed() == compiled_now
    for kept in tmp_path.glob("*/loops.weigh-*"):
        kept.unlink()
    assert computed() == compiled_now


def test_rounding_is_torchs() -> None:
    """Half way between two numbers of bfloat16, the even one."""
    scale = torch.tensor([1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256, 3.4e38, 1e-45])
    x = torch.ones(1, 5).bfloat16()
    y, _ = compiled.rms_norm(x, scale, 0.0)
    assert torch.equal(y[0], scale.bfloat16())


def test_where_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: compiled.MOST_THREADS)
    assert [compiled.fits(torch.ones(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)] == [True, True]
    assert not compiled.fits(torch.ones(2, dtype=torch.float16))
    assert not compiled.fits(torch.ones(2, device="meta"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: compiled.MOST_THREADS + 1)
    assert not compiled.fits(torch.ones(2))


def test_without_numba_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "luthier.engine.loops", raising=False)
    monkeypatch.delattr("luthier.engine.loops", raising=False)
    compiled.find.cache_clear()
    try:
        found = compiled.find()
        assert found.value is None
        assert found.reason == "no loops compiled by numba (import of numba halted; None in sys.modules)"
        assert not compiled.fits(torch.ones(2))
    finally:
        compiled.find.cache_clear()
