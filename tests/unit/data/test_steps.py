"""Optimizer steps of an epoch, by rows and by tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batches import epoch_steps
from luthier.data.steps import Steps


def test_so_many_rows() -> None:
    steps = Steps([5] * 7, rows=3, tokens=None, seed=42)
    assert len(steps) == 3
    assert steps.epoch(1) == epoch_steps(7, 3, seed=42, epoch=1)
    assert [steps.rows_in(done) for done in range(8)] == [0, 3, 6, 7, 10, 13, 14, 17]


def test_so_many_tokens() -> None:
    """Written down: a change of the order would break the resuming of runs that were stopped before it."""
    lengths = [10, 4, 4, 2, 8, 6, 3, 3]  # 40 tokens
    steps = Steps(lengths, rows=16, tokens=14, seed=42)
    assert len(steps) == 3
    assert steps.epoch(0) == [[1, 2, 5], [7, 6, 0], [3, 4]]
    assert [sum(lengths[row] for row in step) for step in steps.epoch(0)] == [14, 16, 10]
    assert steps.epoch(1) != steps.epoch(0)
    assert Steps(lengths, rows=16, tokens=14, seed=43).epoch(0) != steps.epoch(0)
    assert [steps.rows_in(done) for done in range(4)] == [0, 3, 6, 8]
    assert steps.rows_in(4) == 8 + len(steps.epoch(1)[0])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100), st.integers(0, 3))
def test_every_row_once_and_no_step_empty(lengths: list[int], tokens: int, epoch: int) -> None:
    steps = Steps(lengths, rows=16, tokens=tokens, seed=1)
    drawn = steps.epoch(epoch)
    assert sorted(row for step in drawn for row in step) == list(range(len(lengths)))
    assert len(drawn) == len(steps) == min(len(lengths), -(-sum(lengths) // tokens))
    assert all(drawn)


@given(st.lists(st.integers(1, 10), min_size=20, max_size=60), st.integers(30, 100))
def test_steps_hold_nearly_the_same(lengths: list[int], tokens: int) -> None:
    """With rows much shorter than a step, none is off by more than a row: half of one at each end."""
    steps = Steps(lengths, rows=16, tokens=tokens, seed=1)
    share = sum(lengths) / len(steps)
    assert share <= tokens
    for step in steps.epoch(0)[:-1]:
        assert abs(sum(lengths[row] for row in step) - share) <= 10
