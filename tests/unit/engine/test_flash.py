"""Flash attention over a tree: what it is asked, with the kernel written out, against the dense mask."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from luthier.engine import attention, flash
from luthier.engine.attention import dense
from luthier.engine.flash import Sequences, in_flashes, sequences
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


def written_out(q: Tensor, k: Tensor, asked: Sequences, scaling: float, behind: int) -> Tensor:
    """[H, N, K]: scores of each pair in a sequence, counted from its end, and -inf for all others."""
    seen = torch.zeros(len(q), len(k), dtype=torch.bool)
    ends = (list(itertools.pairwise(each.tolist())) for each in (asked.queries, asked.keys))
    for (a, b), (c, d) in zip(*ends, strict=True):
        assert max(b - a, d - c) <= asked.longest
        after = torch.arange(b - a)[:, None] + (d - c) - (b - a) - torch.arange(d - c)
        seen[a:b, c:d] = (after >= 0) & ((behind < 0) | (after <= behind))
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * scaling
    return scores.masked_fill(~seen, -torch.inf)


def forward(q: Tensor, k: Tensor, v: Tensor, asked: Sequences, scaling: float, behind: int) -> tuple[Tensor, ...]:
    scores = written_out(q, k, asked, scaling, behind)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.repeat_interleave(q.shape[1] // v.shape[1], 1))
    none = torch.zeros(())
    return out, scores.logsumexp(-1), none, none


def backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    asked: Sequences,
    random: list[Tensor],
    scaling: float,
    behind: int,
) -> tuple[Tensor, ...]:
    groups = q.shape[1] // k.shape[1]
    weights = (written_out(q, k, asked, scaling, behind) - lse[..., None]).exp()
    at_weights = torch.einsum("qhd,khd->hqk", g, v.repeat_interleave(groups, 1))
    at_scores = weights * (at_weights - (g * out).sum(-1).T[..., None]) * scaling
    dq = torch.einsum("hqk,khd->qhd", at_scores, k.repeat_interleave(groups, 1))
    dk, dv = torch.einsum("hqk,qhd->khd", at_scores, q), torch.einsum("hqk,qhd->khd", weights, g)
    return dq, *(x.unflatten(1, (-1, groups)).sum(2) for x in (dk, dv))


@pytest.mark.parametrize("layout", [attention.TREE, attention.LONGER_TREE, attention.SIDE_BY_SIDE, DEEP])
@pytest.mark.parametrize("window", [None, 3, 40])
def test_a_tree_in_one_call(layout: Layout, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_each_segment_sees_its_path() -> None:
    asked = sequences(Layout(DEEP.segments[:5]))
    assert asked.queries.tolist() == [0, 3, 5, 7, 9, 12]
    assert asked.keys.tolist() == [0, 3, 8, 15, 22, 28]
    assert asked.places is not None
    first, second, third = [0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]
    assert asked.places.tolist() == [*first, *second, *third, *second, 7, 8, *first, 9, 10, 11]
    assert asked.longest == 7


def test_nothing_is_picked_where_nothing_is_shared() -> None:
    asked = sequences(attention.SIDE_BY_SIDE)
    assert asked.places is None
    assert asked.queries.tolist() == asked.keys.tolist() == [0, 150, 251, 400]
    assert asked.longest == 150
