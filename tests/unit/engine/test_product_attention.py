"""Attention as grouped products against the dense mask, and which segments it computes together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.engine import product_attention
from luthier.engine.attention import dense
from luthier.engine.block_attention import in_blocks
from luthier.engine.blocks import blocks_of
from luthier.engine.instance import relative_error
from luthier.engine.layout import Layout, Segment
from luthier.engine.product_attention import in_products, plan_of
from luthier.engine.scores import Scores

SIDE_BY_SIDE = Layout((Segment(0, 3, 3, 0), Segment(3, 4, 4, 0), Segment(4, 10, 10, 0)))
TREE = Layout(
    (
        Segment(0, 5, 17, 0),
        Segment(5, 9, 14, 5),
        Segment(9, 11, 11, 9),
        Segment(11, 14, 14, 9),
        Segment(14, 17, 17, 5),
        Segment(17, 40, 40, 0),
    )
)


def results(kernel: object, layout: Layout, scores: Scores, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients of query, key and value, in float32."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        (3 * torch.randn(1, layout.num_tokens, heads, 8, generator=generator)).bfloat16().to(dtype).transpose(1, 2)
        for heads in (4, kv_heads, kv_heads)
    )
    of = [x.requires_grad_() for x in (query, key, value)]
    out = kernel(*of, layout, scores)  # type: ignore[operator]
    gradient = torch.randn(out.shape, generator=generator).bfloat16().to(dtype)
    return [x.float() for x in (out.detach(), *torch.autograd.grad(out, of, gradient))]


@pytest.mark.parametrize("scores_at_once", [1 << 20, 1])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("layout", [SIDE_BY_SIDE, TREE], ids=["side by side", "tree"])
def test_result_and_gradients(
    monkeypatch: pytest.MonkeyPatch, layout: Layout, kv_heads: int, window: int | None, scores_at_once: int
) -> None:
    """In tiles of sixteen queries too, the fewest there are."""
    monkeypatch.setattr(product_attention, "TILE", scores_at_once)
    asked = Layout(layout.segments), Scores(0.3, window), kv_heads
    for found, expected in zip(
        results(in_products, *asked, torch.float32), results(dense, *asked, torch.float32), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_differences_are_rounded_once() -> None:
    """With scores of up to 60: rounding them before the largest is subtracted gave four times these errors."""
    asked = Layout(TREE.segments), Scores(0.5), 2
    exact, stock = (results(dense, *asked, dtype) for dtype in (torch.float32, torch.bfloat16))
    for ours, theirs, expected in zip(results(in_products, *asked, torch.bfloat16), stock, exact, strict=True):
        assert relative_error(ours, expected) < 2.5 * relative_error(theirs, expected)


def test_scores_that_are_more_go_block_by_block() -> None:
    asked = Layout(TREE.segments), Scores(0.3, cap=0.7), 2
    for found, expected in zip(
        results(in_products, *asked, torch.bfloat16), results(in_blocks, *asked, torch.bfloat16), strict=True
    ):
        assert torch.equal(found, expected)


def test_segments_of_like_length_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [230, 200, 150, 20, 10, 220]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    layout = Layout(tuple(Segment(a, a + n, a + n, 0) for a, n in zip(starts, lengths, strict=True)))
    plan = plan_of(layout, heads=4)
    assert [(len(g.tokens) // g.length, g.length) for g in plan.groups] == [(3, 230), (1, 150), (2, 20)]
    # every token stands where its group says it does
    everywhere = torch.cat([group.tokens for group in plan.groups])
    assert torch.equal(everywhere[plan.place], torch.arange(layout.num_tokens))
    # as many as a tile holds, and one at least
    monkeypatch.setattr(product_attention, "TILE", 4 * 2 * 230**2)
    plan = plan_of(layout, heads=4)
    assert [(len(g.tokens) // g.length, g.length) for g in plan.groups] == [(2, 230), (1, 200), (1, 150), (2, 20)]
