"""What is drawn from logits, exactly."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.inference.sample import Sampling, Token, _inverse, choose, random_numbers

SHARES = torch.tensor([0.1, 0.4, 0.2, 0.3])
LOGITS = SHARES.log()[None] + 5


def drawn(sampling: Sampling, logits: torch.Tensor = LOGITS, count: int = 4000) -> list[float]:
    """How often each token was drawn."""
    generator = random_numbers(0)
    ids = [choose(logits, [sampling], [generator])[0].id for _ in range(count)]
    return [ids.count(token) / count for token in range(logits.shape[1])]


def test_greedy_is_the_likeliest() -> None:
    assert choose(LOGITS, [Sampling()], [random_numbers(0)])[0].id == 1


def test_log_probabilities_are_of_the_distribution_before_temperature() -> None:
    sampling = Sampling(temperature=0.01, top_k=1, logprobs=2)
    token = choose(LOGITS, [sampling], [random_numbers(0)])[0]
    assert token.id == 1
    assert token.logprob == pytest.approx(math.log(0.4))
    assert [id for id, _ in token.top] == [1, 3]
    assert [p for _, p in token.top] == pytest.approx([math.log(0.4), math.log(0.3)])
    assert choose(LOGITS, [Sampling(logprobs=0)], [random_numbers(0)])[0].top == ()
    assert math.isnan(choose(LOGITS, [Sampling()], [random_numbers(0)])[0].logprob)


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        (Sampling(temperature=1), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.5), [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        (Sampling(temperature=1, top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1, top_k=99), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=1, top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(temperature=1, top_p=0.65), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1, top_k=2, top_p=0.5), [0, 1, 0, 0]),  # 4/7 of the two that are left
        (Sampling(temperature=1, top_p=0.0), [0, 1, 0, 0]),
    ],
)
def test_the_shares_of_what_is_drawn(sampling: Sampling, shares: list[float]) -> None:
    assert drawn(sampling) == pytest.approx(shares, abs=0.03)


def test_top_p_beyond_the_candidates_sorts_all() -> None:
    even = torch.zeros(1, 1000)
    generator = random_numbers(0)
    ids = {choose(even, [Sampling(temperature=1, top_p=0.8995)], [generator])[0].id for _ in range(12000)}
    assert len(ids) == 900


def test_a_row_is_drawn_as_alone() -> None:
    samplings = [
        Sampling(temperature=1, seed=1),
        Sampling(),
        Sampling(temperature=2, top_p=0.9, seed=2, logprobs=3),
        Sampling(temperature=1, top_k=3, seed=3, logprobs=0),
        Sampling(temperature=0.7, top_k=300, top_p=0.99, seed=4),
    ]
    logits = torch.randn(len(samplings), 1000, generator=torch.Generator().manual_seed(0)) * 3
    together = choose(logits, samplings, [random_numbers(s.seed) for s in samplings])
    for row, sampling, token in zip(logits, samplings, together, strict=True):
        alone: Token = choose(row[None], [sampling], [random_numbers(sampling.seed)])[0]
        assert (alone.id, alone.top) == (token.id, token.top)


def test_without_a_seed_each_is_another() -> None:
    assert random_numbers(None).initial_seed() != random_numbers(None).initial_seed()


def test_no_number_falls_behind_the_last_share() -> None:
    shares = torch.tensor([[0.25, 0.0, 0.75, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4, 0.0]], dtype=torch.float64)
    for number, expected in ((0.0, [0, 0]), (0.25, [2, 1]), (1 - 2**-53, [2, 3]), (1.0, [2, 3])):
        assert _inverse(shares, torch.full((2,), number, dtype=torch.float64)).tolist() == expected
