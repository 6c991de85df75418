"""Attention in blocks against one mask that says token by token who sees whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.engine.attention import dense
from luthier.engine.block_attention import in_blocks
from luthier.engine.blocks import Block, blocks_of
from luthier.engine.layout import Layout, Segment
from luthier.engine.scores import Scores

LAYOUTS = {
    "one sequence": Layout((Segment(0, 9, 9, 0),)),
    "side by side": Layout((Segment(0, 3, 3, 0), Segment(3, 4, 4, 0), Segment(4, 10, 10, 0))),
    "a shared prefix": Layout((Segment(0, 4, 14, 0), Segment(4, 7, 7, 4), Segment(7, 8, 8, 4), Segment(8, 14, 14, 4))),
    "three levels and a stranger": Layout(
        (
            Segment(0, 5, 17, 0),
            Segment(5, 9, 14, 5),
            Segment(9, 11, 11, 9),
            Segment(11, 14, 14, 9),
            Segment(14, 17, 17, 5),
            Segment(17, 20, 20, 0),
        )
    ),
}


def test_blocks_without_a_window() -> None:
    own = [slice(0, 5), slice(5, 9), slice(9, 11), slice(11, 14), slice(14, 17), slice(17, 20)]
    assert blocks_of(LAYOUTS["three levels and a stranger"]) == [
        *(Block(tokens, tokens, causal=True) for tokens in own),
        Block(slice(5, 17), slice(0, 5), merge=True),
        Block(slice(9, 14), slice(5, 9), merge=True),
    ]


def test_a_window_as_long_as_the_longest_sequence_changes_nothing() -> None:
    for layout in LAYOUTS.values():
        assert blocks_of(layout, layout.longest) == blocks_of(layout)


def test_blocks_with_a_window() -> None:
    """Of nine tokens, in groups of four: each sees itself and three more; no block holds a pair out of reach."""
    blocks = blocks_of(LAYOUTS["one sequence"], 4)
    assert [(b.queries, b.keys, b.causal) for b in blocks] == [
        (slice(0, 4), slice(0, 4), True),
        (slice(4, 8), slice(1, 8), False),
        (slice(8, 9), slice(5, 9), False),
    ]
    assert blocks[0].mask is None
    assert [b.mask.int().tolist() for b in blocks if b.mask is not None] == [
        [[1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]],
        [[1, 1, 1, 1]],
    ]
    behind = [b for b in blocks_of(LAYOUTS["a shared prefix"], 3) if b.merge]
    assert [(b.queries, b.keys) for b in behind] == [
        (slice(4, 6), slice(2, 4)),
        (slice(7, 8), slice(2, 4)),
        (slice(8, 10), slice(2, 4)),
    ]
    assert [b.mask.int().tolist() for b in behind if b.mask is not None] == [
        [[1, 1], [0, 1]],
        [[1, 1]],
        [[1, 1], [0, 1]],
    ]


def inputs(layout: Layout, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """query, key, value and the gradient of the result, strided as a model's are."""
    generator = torch.Generator().manual_seed(layout.num_tokens)
    shapes = [(4, 8), (kv_heads, 8), (kv_heads, 8)]
    made = [torch.randn(1, layout.num_tokens, *s, generator=generator, dtype=dtype).transpose(1, 2) for s in shapes]
    return [x.requires_grad_() for x in made] + [torch.randn(1, layout.num_tokens, 4, 8, generator=generator).to(dtype)]


def compare(layout: Layout, kv_heads: int, scores: Scores) -> None:
    query, key, value, gradient = inputs(layout, kv_heads, torch.float64)
    of = [query, key, value] + ([] if scores.sinks is None else [scores.sinks])
    found, expected = (kernel(query, key, value, layout, scores) for kernel in (in_blocks, dense))
    exact = 1e-12 if scores.plain else 1e-6  # others the dense one computes in float32
    torch.testing.assert_close(found, expected, rtol=0, atol=exact)
    for ours, theirs in zip(
        torch.autograd.grad(found, of, gradient), torch.autograd.grad(expected, of, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2 * exact)


@pytest.mark.parametrize("window", [None, 1, 2, 3, 5, 100])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", LAYOUTS)
def test_result_and_gradients(name: str, kv_heads: int, window: int | None) -> None:
    compare(LAYOUTS[name], kv_heads, Scores(0.3, window))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_soft_capped_scores_and_sinks(name: str, window: int | None) -> None:
    sinks = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    for scores in (Scores(0.3, window, 0.7), Scores(0.3, window, sinks=sinks), Scores(0.3, window, 0.7, sinks)):
        compare(LAYOUTS[name], 2, scores)


def test_bfloat16_is_computed_in_float32_and_rounded_once() -> None:
    layout = LAYOUTS["three levels and a stranger"]
    *of, gradient = inputs(layout, 2, torch.bfloat16)
    found = in_blocks(*of, layout, Scores(0.3))
    grads = torch.autograd.grad(found, of, gradient)
    exact = [x.detach().float().requires_grad_() for x in of]
    expected = in_blocks(*exact, layout, Scores(0.3))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    for ours, theirs in zip(grads, torch.autograd.grad(expected, exact, gradient.float()), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).norm() < 5e-3 * theirs.norm()
