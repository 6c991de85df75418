"""Products of few rows by another way are the same products, and the fastest way is taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from luthier.engine.instance import is_replaced, relative_error, restore
from luthier.inference import products
from luthier.inference.products import Products, columns, own_loop

WAYS = {linear: "linear", own_loop: "own_loop", columns: "columns"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[str, int], float]]:
    """What each way takes for so many rows; a way that is not named takes a second."""
    seconds: dict[tuple[str, int], float] = {}
    asked: set[tuple[str, int]] = set()

    def timed(way: products.Way, x: Tensor, weights: list[Tensor]) -> float:
        asked.add((WAYS[way], len(x)))
        return seconds.get((WAYS[way], len(x)), 1.0)

    monkeypatch.setattr(products, "_seconds", timed)
    monkeypatch.setattr(products, "SMALLEST", 0)
    yield seconds
    assert set(seconds) <= asked


def model() -> Any:
    return nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 40))


def named(found: Products) -> list[tuple[int, str]]:
    return [(rows, WAYS[way]) for rows, way in found.ways]


@pytest.mark.parametrize("way", [own_loop, columns])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_each_way_is_the_product(way: products.Way, dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((rows, 24), (40, 24), (40,)))
    for b in (None, bias):
        found = way(x.to(dtype), weight.to(dtype), None if b is None else b.to(dtype))
        assert (found.shape, found.dtype, found.is_contiguous()) == ((rows, 40), dtype, True)
        assert relative_error(found, linear(x, weight, b)) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_onednn_is_on_again_after_a_product_and_after_an_error() -> None:
    own_loop(torch.ones(1, 3), torch.ones(2, 3), None)
    assert torch.backends.mkldnn.enabled
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        own_loop(torch.ones(1, 4), torch.ones(2, 3), None)
    assert torch.backends.mkldnn.enabled


def test_the_fastest_way_of_each_number_of_rows_is_taken(clock: dict[tuple[str, int], float]) -> None:
    clock.update({("own_loop", 1): 0.5, ("own_loop", 4): 3.0, ("columns", 4): 0.7, ("columns", 128): 0.8})
    assert named(Products(model())) == [(1, "own_loop"), (4, "columns"), (16, "linear"), (128, "columns")]


def test_a_little_faster_is_not_worth_it(clock: dict[tuple[str, int], float]) -> None:
    clock.update({("own_loop", 1): 0.9, ("columns", 4): 0.85})
    assert named(Products(model())) == []


def test_products_of_small_weights_are_left_alone() -> None:
    whole = model()
    product = Products(whole)
    product.install(whole)
    assert product.ways == []
    assert not any(is_replaced(layer) for layer in whole)


def test_the_layers_of_a_model_use_it(clock: dict[tuple[str, int], float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock.update({("columns", 1): 0.5, ("columns", 4): 0.5})
    whole = model()
    product = Products(whole)
    assert named(product) == [(1, "columns"), (4, "columns")]
    rows: list[int] = []

    def seen(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows.append(len(x))
        return columns(x, weight, bias)

    product.ways = [(number, seen) for number, _ in product.ways]
    inputs = [torch.randn(*size, 24) for size in ((1, 1), (1, 4), (1, 5), (2, 2))]
    with torch.no_grad():
        expected = [whole(x) for x in inputs]
        product.install(whole)
        found = [whole(x) for x in inputs]
    assert rows == [1, 1, 1, 4, 4, 4, 4, 4, 4]
    assert max(relative_error(*pair) for pair in zip(found, expected, strict=True)) < 1e-6
    restore(whole)
    assert not any(is_replaced(layer) for layer in whole)


def test_what_is_measured_is_the_most_common_shape() -> None:
    weights = [torch.zeros(size) for size in ((600, 500), (3000, 500), (600, 500), (9, 9), (500, 600), (500, 600))]
    assert [w.shape for w in products._representative(weights)] == [(600, 500)] * 2
    assert products._representative([torch.zeros(9, 9)] * 3) == []
    assert products._representative([]) == []
    large = [torch.empty(1 << 13, 1 << 10)] * 9  # 32 MB each
    assert len(products._representative(large)) == 3
