"""Attention over a flat row: its kernels against the mask written out token by token."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from luthier.choice import Choice
from luthier.engine import attention
from luthier.engine.attention import dense, fault, flat_attention, pick_kernel
from luthier.engine.block_attention import in_blocks
from luthier.engine.flash import in_flashes
from luthier.engine.gpu_attention import TILE, Flex, block_mask
from luthier.engine.layout import Layout, Segment
from luthier.engine.scores import Scores

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


# ---------------------------------------------------------------- which kernel


@pytest.mark.parametrize("plain", [True, False])
def test_kernels_of_a_cpu_and_of_a_device_without_any(plain: bool) -> None:
    assert pick_kernel("cpu", torch.float32, 64, plain) == Choice(in_blocks, "attention in blocks")
    none = "attention with a dense mask, as there is no other on mps"
    assert pick_kernel("mps", torch.float32, 64, plain) == Choice(dense, none)


@pytest.mark.parametrize(
    ("plain", "flash_fault", "flex_fault", "expected"),
    [
        (True, None, "fails", "attention by flash attention"),
        (True, "fails (no such kernel)", None, "attention by FlexAttention"),
        (False, None, None, "attention by FlexAttention"),
        (False, None, "fails (no compiler)", "attention by a dense mask, as FlexAttention fails (no compiler)"),
        (True, "is off", "is off by 3.0e-01", "attention by a dense mask, as FlexAttention is off by 3.0e-01"),
    ],
)
def test_kernels_of_a_gpu_must_prove_themselves(
    plain: bool, flash_fault: str | None, flex_fault: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(kernel: Any, sample: Layout, *_: Any) -> str | None:
        of_this_kernel = flash_fault if kernel is in_flashes else flex_fault
        return of_this_kernel if sample is attention.LONGER_TREE else None

    monkeypatch.setattr(attention, "fault", fault)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    pick_kernel.cache_clear()
    chosen = pick_kernel("cuda", torch.bfloat16, 64, plain)
    pick_kernel.cache_clear()
    assert chosen.reason == expected
    assert isinstance(chosen.value, Flex) == expected.endswith("by FlexAttention")
    assert (chosen.value is in_flashes) == expected.endswith("flash attention")


def test_what_is_wrong_with_a_kernel() -> None:
    def fails(*_: Any) -> torch.Tensor:
        raise RuntimeError("no kernel for this card\nat line 3")

    def twice(*asked: Any) -> torch.Tensor:
        return 2 * dense(*asked)

    asked = (attention.TREE, torch.float32, 8, "cpu")
    assert fault(in_blocks, *asked) is None
    assert fault(fails, *asked) == "fails (no kernel for this card)"
    assert (fault(twice, *asked) or "").startswith("is off by ")
    assert (fault(in_flashes, attention.SIDE_BY_SIDE, *asked[1:]) or "").startswith("fails (")  # it wants a GPU


# ---------------------------------------------------------------- FlexAttention, as far as a CPU can show it


@pytest.mark.parametrize("window", [None, 40, 200])
@pytest.mark.parametrize("layout", [attention.TREE, attention.LONGER_TREE, attention.SIDE_BY_SIDE, TREE])
def test_tiles_hold_what_the_mask_holds(layout: Layout, window: int | None) -> None:
    """Tiles taken whole hold only visible pairs, and tiles left out none."""
    mask = layout.mask(window)
    tiles = -(-layout.num_tokens // TILE)
    padded = torch.zeros(tiles * TILE, tiles * TILE, dtype=torch.bool)
    padded[: layout.num_tokens, : layout.num_tokens] = mask
    parts = padded.view(tiles, TILE, tiles, TILE).transpose(1, 2).flatten(2)
    made = block_mask(layout, window)
    assert made.full_kv_num_blocks is not None and made.full_kv_indices is not None
    partly = torch.zeros(tiles, tiles, dtype=torch.bool)
    whole = torch.zeros(tiles, tiles, dtype=torch.bool)
    for q in range(tiles):
        partly[q, made.kv_indices[0, 0, q, : made.kv_num_blocks[0, 0, q]].long()] = True
        whole[q, made.full_kv_indices[0, 0, q, : made.full_kv_num_blocks[0, 0, q]].long()] = True
    assert torch.equal(whole, parts.all(-1))
    assert torch.equal(partly | whole, parts.any(-1)) or window is not None  # a window may leave an empty tile in
    assert bool((parts.any(-1) <= (partly | whole)).all())
    places = torch.arange(tiles * TILE)
    assert torch.equal(made.mask_mod(places[:1], places[:1], places[:, None], places[None]), padded)


@pytest.mark.parametrize(("softcap", "with_sinks"), [(None, False), (2.0, False), (None, True)])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("heads", [4, 6])
def test_flex_attention_uncompiled(heads: int, window: int | None, softcap: float | None, with_sinks: bool) -> None:
    layout = attention.TREE
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, h, layout.num_tokens, 16, generator=generator) for h in (heads, 2, 2))
    sinks = torch.randn(heads, generator=generator) if with_sinks else None
    scores = Scores(0.4, window, softcap, sinks)
    found = Flex()(query, key, value, layout, scores)
    torch.testing.assert_close(found, dense(query, key, value, layout, scores), rtol=0, atol=2e-6)
