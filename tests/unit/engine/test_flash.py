"""Flash attention over a tree: its calls, with the kernels written out, against the dense mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.engine import attention, flash
from luthier.engine.attention import dense
from luthier.engine.flash import Call, Parts, in_flashes, parts_of
from luthier.engine.instance import relative_error
from luthier.engine.layout import Layout, Segment
from luthier.engine.scores import Scores

DEEP = Layout(
    (
        Segment(0, 3, 12, 0),
        Segment(3, 5, 9, 3),
        Segment(5, 7, 7, 5),
        Segment(7, 9, 9, 5),
        Segment(9, 12, 12, 3),
        Segment(12, 14, 14, 0),
        Segment(14, 16, 20, 0),
        Segment(16, 18, 18, 2),
        Segment(18, 20, 20, 2),
    )
)


def pairs(call: Call, tokens: int, behind: int) -> Tensor:
    """[N, N] bool: which query attends to which key in this call. A causal part ends with its last key."""
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for a, b, c, d in zip(call.queries[:-1], call.queries[1:], call.keys[:-1], call.keys[1:], strict=True):
        assert b - a <= call.longest and d - c <= call.longest
        after = torch.arange(a, b)[:, None] - a - (torch.arange(c, d)[None] - c)
        seen[a:b, c:d] = (after >= 0) & ((behind < 0) | (after <= behind)) if call.causal else True
    return seen


def written_out(q: Tensor, k: Tensor, call: Call, scaling: float, behind: int) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * scaling
    return scores.masked_fill(~pairs(call, len(q), behind), -torch.inf)


def forward(q: Tensor, k: Tensor, v: Tensor, call: Call, scaling: float, behind: int) -> tuple[Tensor, ...]:
    """As the kernel does: a query without keys gives zeros, and has infinite log-sum-exp."""
    scores = written_out(q, k, call, scaling, behind)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().nan_to_num(0)
    out = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(q.shape[1] // v.shape[1], 1))
    none = torch.zeros(())
    return out, torch.where(lse == -torch.inf, torch.inf, lse), none, none


def backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
    random: list[Tensor],
    scaling: float,
    behind: int,
) -> tuple[Tensor, ...]:
    groups = q.shape[1] // k.shape[1]
    weights = (written_out(q, k, call, scaling, behind) - lse[..., None]).exp()
    at_weights = torch.einsum("qhd,khd->hqk", g, v.repeat_interleave(groups, 1))
    at_scores = weights * (at_weights - (g * out).sum(-1).T[..., None]) * scaling
    dq = torch.einsum("hqk,khd->qhd", at_scores, k.repeat_interleave(groups, 1))
    dk, dv = torch.einsum("hqk,qhd->khd", at_scores, q), torch.einsum("hqk,qhd->khd", weights, g)
    return dq, *(x.unflatten(1, (-1, groups)).sum(2) for x in (dk, dv))


@pytest.mark.parametrize("layout", [attention.TREE, attention.LONGER_TREE, attention.SIDE_BY_SIDE, DEEP])
@pytest.mark.parametrize("window", [None, 40])
def test_a_tree_by_a_few_calls(layout: Layout, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if window is not None and layout.shares:
        pytest.skip("a window over shared segments is FlexAttention's")
    monkeypatch.setattr(flash, "_forward", forward)
    monkeypatch.setattr(flash, "_backward", backward)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, heads, layout.num_tokens, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    ]
    slope = torch.randn(1, layout.num_tokens, 4, 8, generator=generator, dtype=torch.float64)
    results = []
    for kernel in (dense, in_flashes):
        out = kernel(*inputs, layout, Scores(0.4, window))
        results.append((out.detach(), *torch.autograd.grad(out, inputs, slope)))
    for expected, found in zip(*results, strict=True):
        assert relative_error(found, expected) < 1e-6


def test_the_calls_of_a_tree() -> None:
    own, first, second = parts_of(DEEP.segments)
    ends = [0, 3, 5, 7, 9, 12, 14, 16, 18, 20]
    assert own == Parts(ends, ends)
    # [0, 3) is seen by [3, 12), and [14, 16) by [16, 20); what lies between is alone.
    assert first == Parts([0, 3, 12, 16, 16, 20, 20], [0, 0, 3, 3, 14, 16, 20])
    assert second == Parts([0, 5, 5, 9, 20, 20], [0, 0, 3, 5, 5, 20])
    assert (own.longest, first.longest, second.longest) == (3, 11, 15)
    assert len(parts_of(attention.SIDE_BY_SIDE.segments)) == 1
