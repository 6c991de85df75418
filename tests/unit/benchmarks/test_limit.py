"""The products that a step cannot avoid, against counts by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.limit import Product, Tokens, count_tokens, merged, products, rate

A, B, C, D, E, F = range(6)
NO = -100


def test_a_beginning_that_rows_share_is_counted_once() -> None:
    """Computed: A B, then C of the first row, D of the second; the last token of each is only predicted."""
    tokens = count_tokens([[A, B, C, E], [A, B, D, F]], [[NO, NO, NO, E], [NO, NO, D, F]])
    assert tokens == Tokens(distinct=4, labelled=3, contexts=1 + 2 + 3 + 3)


def test_rows_that_share_longer_beginnings_make_a_tree() -> None:
    rows = [[A, B, C, D, F], [A, E, F], [A, B, C, E, F]]
    labels = [[NO] * (len(row) - 1) + [F] for row in rows]
    assert count_tokens(rows, labels) == Tokens(distinct=6, labelled=3, contexts=(1 + 2 + 3 + 4) + 4 + 2)


def test_tokens_behind_the_last_label_are_not_needed() -> None:
    assert count_tokens([[A, B, C, D, E]], [[NO, NO, C, NO, NO]]) == Tokens(distinct=2, labelled=1, contexts=3)


CONFIG = SimpleNamespace(
    hidden_size=4,
    intermediate_size=6,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=3,
    num_hidden_layers=2,
    vocab_size=10,
)
TOKENS = Tokens(distinct=5, labelled=2, contexts=15)


def flops(part: str) -> float:
    return sum(product.flops for product in products(CONFIG, TOKENS, rank=1) if product.part == part)


def test_the_linear_layers() -> None:
    """Weights of a layer: q 4×6, k and v 4×3, o 6×4, gate and up 4×6, down 6×4. The last layer: k and v for all five
    tokens, the rest for the two that predict."""
    kv, rest = 2 * 4 * 3, 24 + 24 + 3 * 24
    assert flops("linear forward") == 2 * (5 * (kv + rest) + 5 * kv + 2 * rest)
    assert flops("linear input gradient") == 2 * (5 * (24 + 3 * 24) + 5 * kv + 2 * rest)  # first layer without q, k, v


def test_the_adapter() -> None:
    """At rank 1 a layer of K inputs and N outputs takes 3 (K + N) multiplications a token, K fewer without input
    gradient."""
    kv, q, rest = 2 * (4 + 3), 4 + 6, (6 + 4) + 3 * (4 + 6)
    assert flops("LoRA") == 2 * (5 * (3 * (kv + q + rest) - 3 * 4) + 5 * 3 * kv + 2 * 3 * (q + rest))


def test_attention_and_head() -> None:
    """Six products of 2 heads × 3 wide over 15 contexts in each of two layers; the head's two over 4 × 10 weights."""
    assert flops("attention") == pytest.approx(2 * 6 * (2 * 3) * 15 * 2)
    assert flops("head") == 2 * 2 * (2 * 4 * 10)


def test_products_of_one_shape_are_timed_once() -> None:
    assert merged([Product("p", 2, 3, 4), Product("p", 2, 3, 4, times=2), Product("q", 2, 3, 4)]) == [
        Product("p", 2, 3, 4, times=3),
        Product("q", 2, 3, 4),
    ]


def test_a_rate_is_that_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5])
    monkeypatch.setattr("benchmarks.limit.time.perf_counter", lambda: next(clock))
    assert rate(Product("p", 2, 3, 4, times=7, batch=5), "float32", "cpu") == 2 * 2 * 3 * 4 * 5 / 0.5
