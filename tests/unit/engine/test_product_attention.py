"""Attention as grouped products against the dense mask, and which segments it computes together."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from luthier.engine import tiles
from luthier.engine.attention import dense
from luthier.engine.block_attention import in_blocks
from luthier.engine.instance import relative_error
from luthier.engine.layout import Layout, Segment
from luthier.engine.product_attention import in_products
from luthier.engine.scores import Scores
from luthier.engine.tiles import plan_of

pytestmark = pytest.mark.usefixtures("either_loops")

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

LONG = Layout(
    (Segment(0, 150, 700, 0), Segment(150, 551, 551, 150), Segment(551, 590, 590, 150), Segment(590, 700, 700, 150))
)
"""Tiles of 64 keys and 32 queries divide none of its segments."""
DOCUMENT = Layout(
    (
        Segment(0, 2000, 2071, 0),
        *(Segment(start, stop, stop, 2000) for start, stop in itertools.pairwise((2000, 2030, 2055, 2071))),
        Segment(2071, 3400, 3400, 0),
    )
)


def results(
    kernel: object, layout: Layout, scores: Scores, kv_heads: int, dtype: torch.dtype, heads: int = 4
) -> list[Tensor]:
    """The result and the gradients of query, key and value, in float32."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        (3 * torch.randn(1, layout.num_tokens, each, 8, generator=generator)).bfloat16().to(dtype).transpose(1, 2)
        for each in (heads, kv_heads, kv_heads)
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
    monkeypatch.setattr(tiles, "TILE", scores_at_once)
    asked = Layout(layout.segments), Scores(0.3, window), kv_heads
    for found, expected in zip(
        results(in_products, *asked, torch.float32), results(dense, *asked, torch.float32), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 20, 64, 130, 300])
@pytest.mark.parametrize("layout", [LONG, TREE], ids=["long", "tree"])
def test_rows_longer_than_a_tile(monkeypatch: pytest.MonkeyPatch, layout: Layout, window: int | None) -> None:
    monkeypatch.setattr(tiles, "WIDTH", 64)
    monkeypatch.setattr(tiles, "HEIGHT", 32)
    asked = Layout(layout.segments), Scores(0.3, window), 2
    for found, expected in zip(
        results(in_products, *asked, torch.float32), results(dense, *asked, torch.float32), strict=True
    ):
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("window", [None, 700])
def test_long_rows_and_a_long_document_with_short_ones_behind(window: int | None) -> None:
    """In tiles as they come. Stock attention computes in float32 what it is given in bfloat16."""
    asked = Layout(DOCUMENT.segments), Scores(0.3, window), 1
    exact, ours = (results(kernel, *asked, torch.float32, heads=2) for kernel in (dense, in_products))
    for found, expected in zip(ours, exact, strict=True):
        assert relative_error(found, expected) < 1e-5
    stock, ours = (results(kernel, *asked, torch.bfloat16, heads=2) for kernel in (dense, in_products))
    for found, theirs, expected in zip(ours, stock, exact, strict=True):
        assert relative_error(found, expected) < 3 * relative_error(theirs, expected)


def test_scores_far_above_those_of_the_first_and_the_last_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """exp of what lies between overflows, until the top is that of all tiles."""
    monkeypatch.setattr(tiles, "WIDTH", 16)
    monkeypatch.setattr(tiles, "HEIGHT", 16)
    layout = Layout((Segment(0, 100, 100, 0),))
    query, value = torch.ones(1, 2, 100, 8), torch.randn(1, 2, 100, 8, generator=torch.Generator().manual_seed(0))
    key = torch.zeros(1, 2, 100, 8)
    key[:, :, 40:44] = torch.arange(4.0)[:, None] / 8 + 15  # scores of 120 to 123 among zeros
    found, expected = (kernel(query, key, value, layout, Scores(1.0)) for kernel in (in_products, dense))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_tile_is_hidden_and_no_mask_is_larger_than_its_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(window: int | None) -> list[list[tuple[slice, slice, slice | None]]]:
        plan = plan_of(Layout((Segment(0, 70, 70, 0),)), 2, 1, window)
        return [[(t.queries, t.keys, t.hidden and t.hidden.columns) for t in strip] for strip in plan.groups[0].strips]

    monkeypatch.setattr(tiles, "WIDTH", 32)
    monkeypatch.setattr(tiles, "HEIGHT", 16)
    first, second, third = slice(0, 32), slice(32, 64), slice(64, 70)
    assert listed(None) == [
        [(slice(0, 16), slice(0, 16), slice(1, 16))],
        [(slice(16, 32), first, slice(17, 32))],
        [(slice(32, 48), first, None), (slice(32, 48), slice(32, 48), slice(1, 16))],
        [(slice(48, 64), first, None), (slice(48, 64), second, slice(17, 32))],
        [(third, first, None), (third, second, None), (third, third, slice(1, 6))],
    ]
    assert listed(20)[2:] == [
        [(slice(32, 48), slice(13, 32), slice(0, 15)), (slice(32, 48), slice(32, 48), slice(1, 16))],
        [(slice(48, 64), slice(29, 32), slice(0, 3)), (slice(48, 64), second, slice(0, 32))],
        [(third, slice(45, 64), slice(0, 5)), (third, third, slice(1, 6))],
    ]


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
    plan = plan_of(layout, 4, 2)
    assert [tuple(group.tokens.shape) for group in plan.groups] == [(3, 230), (1, 150), (2, 20)]
    # every token stands where its group says it does
    for heads, own, places in (
        (4, [group.queries for group in plan.groups], plan.queries),
        (2, [group.keys for group in plan.groups], plan.keys),
    ):
        assert torch.equal(torch.cat(own)[places], torch.arange(layout.num_tokens * heads))
    # as many as a tile holds, and one at least
    monkeypatch.setattr(tiles, "TILE", 4 * 2 * 230**2)
    plan = plan_of(layout, 4, 2)
    assert [tuple(group.tokens.shape) for group in plan.groups] == [(2, 230), (1, 200), (1, 150), (2, 20)]


def test_short_beginnings_are_keys_of_what_lies_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of TREE end after 5 tokens, and the longer one after 9."""

    def listed() -> tuple[list[tuple[list[int], list[int]]], list[tuple[slice, slice]]]:
        plan = plan_of(Layout(TREE.segments), 1, 1)
        groups = [(group.before.tolist(), group.tokens[:, 0].tolist()) for group in plan.groups]
        return groups, [(block.queries, block.keys) for block, _ in plan.blocks]

    root, longer = [0, 1, 2, 3, 4], [*range(9)]
    assert listed() == ([([], [17, 0]), (root, [5, 14]), (longer, [11, 9])], [])
    monkeypatch.setattr(tiles, "DIRECT", 5)
    assert listed() == ([([], [17, 0]), (root, [5, 11, 14, 9])], [(slice(9, 14), slice(5, 9))])
    monkeypatch.setattr(tiles, "DIRECT", 4)
    groups, blocks = listed()
    assert [before for before, _ in groups] == [[]] * len(groups)
    assert blocks == [(slice(5, 17), slice(0, 5)), (slice(9, 14), slice(5, 9))]
