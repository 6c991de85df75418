"""Attention over a flat row: its kernels against the mask written out token by token."""

from __future__ import annotations

import itertools

import pytest
import torch

from luthier.engine.attention import flat_attention
from luthier.engine.layout import Layout, Segment

MODULE = torch.nn.Identity()
TREE = Layout((Segment(0, 3, 9, 0), Segment(3, 5, 5, 3), Segment(5, 9, 9, 3), Segment(9, 12, 12, 0)))
SEQUENCES = [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7, 8], [9, 10, 11]]


def naive(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, scaling: float
) -> torch.Tensor:
    """[1, N, H, D], written out: each sequence's tokens see those before them."""
    mask = torch.zeros(12, 12, dtype=torch.bool)
    for sequence in SEQUENCES:
        for q, k in itertools.product(range(len(sequence)), repeat=2):
            mask[sequence[q], sequence[k]] = k <= q and (window is None or q - k < window)
    heads = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(heads, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("width", [8, 6], ids=["blocks", "dense"])
def test_each_token_sees_its_sequences(width: int, window: int | None) -> None:
    """Values of another width than the keys' go through SDPA with a mask."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 12, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(1, 2, 12, d, generator=generator, dtype=torch.float64) for d in (8, width))
    found, weights = flat_attention(
        MODULE, query, key, value, None, layout=TREE, scaling=0.3, sliding_window=window, is_causal=True
    )
    assert weights is None
    assert found.shape == (1, 12, 4, width)
    torch.testing.assert_close(found, naive(query, key, value, window, 0.3), rtol=0, atol=1e-12)


def test_dropout_drops() -> None:
    query, key, value = (torch.randn(1, 2, 12, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    whole, _ = flat_attention(MODULE, query, key, value, None, layout=TREE)
    dropped, _ = flat_attention(MODULE, query, key, value, None, layout=TREE, dropout=0.5)
    assert (whole - dropped).abs().max() > 0.1
