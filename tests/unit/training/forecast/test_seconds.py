"""Seconds of a run, from rates that are written down."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.training.forecast.rates import Rates, Timed
from luthier.training.forecast.seconds import Seconds, heldout_seconds, seconds, step_seconds
from luthier.training.forecast.workload import Piece, Workload

RATES = Rates(
    steps=[Timed(100, 50, 0.01, 0.02, 0.1), Timed(200, 100, 0.02, 0.06, 0.2)],
    evaluation=Timed(100, 50, 0.01, 0.0, 0.05),
    heldout=Timed(100, 50, 0.01, 0.0, 0.05),
    new_token=0.001,
    outside_token=0.003,
    update=0.002,
    new_shape=0.25,
    products=1e11,
)
WORK = Workload(
    dearest=[],
    samples=[],
    epoch=[[Piece(100, 50), Piece(200, 100)], [Piece(100, 50)]],
    heldout=[Piece(100, 50)],
    measured=[Piece(200, 100)],
    steps=3,
    evaluations=4,
    saves=2,
    questions=5,
    prompt_tokens=100,
    ending_tokens=50,
    real=[400, 200],
    padded=800,
)


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (Piece(100, 50), 10 * 0.03 + 0.1),
        (Piece(200, 100), 10 * 0.08 + 0.2),
        (Piece(150, 75), 10 * 0.055 + 0.15),  # between two that were timed
        (Piece(50, 0), 10 * 0.015),  # below and above, in proportion
        (Piece(400, 100), 10 * 0.16 + 0.2),
    ],
)
def test_a_micro_batch(piece: Piece, expected: float) -> None:
    assert step_seconds(RATES, layers=10, recomputed=0)(piece) == pytest.approx(expected)


def test_recomputing_costs_a_forward() -> None:
    assert step_seconds(RATES, layers=10, recomputed=4)(Piece(100, 50)) == pytest.approx(0.4 + 4 * 0.01)


def test_an_evaluation_has_no_backward() -> None:
    assert heldout_seconds(RATES.heldout, layers=10)(Piece(200, 25)) == pytest.approx(10 * 0.02 + 0.025)


def test_processes_evaluate_together() -> None:
    """Each slower than one alone; what is measured row by row, one computes."""
    rates = replace(RATES, evaluation=Timed(100, 50, 0.016, 0.0, 0.08))
    work = replace(WORK, processes=2, questions=0)
    found = seconds(work, rates, layers=10, recomputed=0, loading=0.0, saved_bytes=0, dearest=[])
    assert found.evaluation == pytest.approx(4 * (10 * 0.016 + 0.08) / 2 + 2 * 0.3)


def test_a_run() -> None:
    """Steps of one, then two, then one micro-batch less: 100 + 200, 100, 100 + 200 tokens."""
    found = seconds(
        WORK, RATES, layers=10, recomputed=0, loading=5.0, saved_bytes=20 * 10**6, dearest=[Piece(200, 100)],
        unplanned=1.5,
    )  # fmt: skip
    parts = {
        "before": 5 + 1.0 + 0.25,
        "steps": 3 * 0.4 + 2 * 1.0 + 5 * 0.25 + 3 * 10 * 0.002,
        "evaluation": 4 * (0.15 + 32 * 0.013) + 2 * 0.3,
        "saves": 2 * (0.1 + 0.02),
        "answers": 2 * 0.1 + 128 * 0.013 + 2 * 0.05,
        "unplanned": 1.5,
    }
    assert found.to_json() == pytest.approx({**parts, "total": sum(parts.values())})


def test_graphs_are_captured_once_a_size() -> None:
    """150 and 200 tokens go into one graph of 256, 700 into another."""
    work = replace(WORK, epoch=[[Piece(200, 50), Piece(150, 50)], [Piece(700, 50)]])
    plain, captured = (
        seconds(work, rates, layers=10, recomputed=0, loading=0.0, saved_bytes=0, dearest=[])
        for rates in (RATES, replace(RATES, capture=0.5))
    )
    assert captured.steps - plain.steps == pytest.approx(2 * 0.5)


def test_nothing_is_asked_where_nothing_is_held_out() -> None:
    alone = replace(WORK, heldout=[], measured=[], questions=0, ending_tokens=0, evaluations=0)
    found = seconds(alone, RATES, layers=10, recomputed=0, loading=0.0, saved_bytes=0, dearest=[])
    assert (found.evaluation, found.answers) == (0, 0)


def test_rates_are_kept_as_they_are() -> None:
    assert Rates.from_json(RATES.to_json()) == RATES


def test_pieces_of_a_run_repeat_the_first_epoch() -> None:
    assert [piece.tokens for piece in WORK.pieces] == [100, 200, 100, 100, 200]
    assert (WORK.computed, WORK.trained) == (400, 400 + 200 + 400)
    assert Seconds(1, 2, 3, 4, 5).total == 15
