"""Attention over a flat row, against one big mask that says token by token who sees whom."""

from __future__ import annotations

import itertools

import pytest
import torch

from luthier.engine.attention import causal_mask, flat_attention
from luthier.engine.layout import Layout

CPU = torch.device("cpu")
MODULE = torch.nn.Identity()


def test_a_causal_mask_is_drawn_only_where_sdpa_has_no_own() -> None:
    assert causal_mask(3, 3, None, CPU) is None
    assert causal_mask(3, 3, 3, CPU) is None
    mask = causal_mask(2, 4, 3, CPU)
    assert mask is not None
    assert mask.int().tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]
    mask = causal_mask(3, 3, 2, CPU)
    assert mask is not None
    assert mask.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    mask = causal_mask(2, 4, None, CPU)
    assert mask is not None
    assert mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def naive(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, window: int | None, scaling: float
) -> torch.Tensor:
    """[1, N, H, D], written out: who belongs to which sequence, at which place, and what it may see."""
    owner = [-1] * layout.prefix + [b for b, length in enumerate(layout.lengths) for _ in range(length)]
    place = [
        *range(layout.prefix),
        *itertools.chain(*(range(layout.prefix, layout.prefix + n) for n in layout.lengths)),
    ]
    total = layout.num_tokens
    mask = torch.zeros(total, total, dtype=torch.bool)
    for q, k in itertools.product(range(total), range(total)):
        same = owner[k] in (-1, owner[q])
        near = window is None or place[q] - place[k] < window
        mask[q, k] = same and place[k] <= place[q] and near
    heads = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(heads, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "layout", [Layout(0, (5,)), Layout(0, (3, 1, 6)), Layout(4, (3, 1, 6)), Layout(1, (1, 1)), Layout(7, (2, 2))]
)
def test_each_token_sees_the_prefix_and_its_own_sequence(layout: Layout, kv_heads: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(layout.num_tokens)
    query = torch.randn(1, 4, layout.num_tokens, 8, generator=generator, dtype=torch.float64)
    key, value = (
        torch.randn(1, kv_heads, layout.num_tokens, 8, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    found, weights = flat_attention(
        MODULE, query, key, value, None, layout=layout, scaling=0.3, sliding_window=window, is_causal=True
    )
    assert weights is None
    assert found.shape == (1, layout.num_tokens, 4, 8)
    torch.testing.assert_close(found, naive(query, key, value, layout, window, 0.3), rtol=0, atol=1e-12)


def test_dropout_drops() -> None:
    layout = Layout(2, (3, 2))
    query, key, value = (torch.randn(1, 2, 7, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    whole, _ = flat_attention(MODULE, query, key, value, None, layout=layout)
    dropped, _ = flat_attention(MODULE, query, key, value, None, layout=layout, dropout=0.5)
    assert (whole - dropped).abs().max() > 0.1
