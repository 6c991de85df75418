"""Steps of an epoch, and micro-batches of a step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batches import epoch_steps, micro_batches
from luthier.data.conversation import Source
from luthier.data.render import Example


def rows_of(*lengths: int) -> list[Example]:
    return [
        Example([3] * length, [3] * length, Source("rows.json", number)) for number, length in enumerate(lengths, 1)
    ]


def padded(examples: list[Example]) -> int:
    return len(examples) * max(len(example.input_ids) for example in examples)


def lengths_of(batches: list[list[Example]]) -> list[list[int]]:
    return [[len(example.input_ids) for example in batch] for batch in batches]


def test_the_steps_of_an_epoch() -> None:
    """Written down: a change of the order would break the resuming of runs that were stopped before it."""
    assert epoch_steps(7, 3, seed=42, epoch=0) == [[6, 4, 1], [5, 0, 3], [2]]
    assert epoch_steps(7, 3, seed=42, epoch=1) != epoch_steps(7, 3, seed=42, epoch=0)
    assert epoch_steps(7, 3, seed=43, epoch=0) != epoch_steps(7, 3, seed=42, epoch=0)
    assert epoch_steps(0, 3, seed=42, epoch=0) == []


@given(st.integers(0, 50), st.integers(1, 9), st.integers(), st.integers(0, 5))
def test_an_epoch_holds_every_row_once(rows: int, batch_size: int, seed: int, epoch: int) -> None:
    steps = epoch_steps(rows, batch_size, seed=seed, epoch=epoch)
    assert sorted(index for step in steps for index in step) == list(range(rows))
    assert [len(step) for step in steps[:-1]] == [batch_size] * (len(steps) - 1)
    assert steps == epoch_steps(rows, batch_size, seed=seed, epoch=epoch)


def test_micro_batches_are_filled_with_rows_of_like_length() -> None:
    rows = rows_of(9, 2, 5, 4, 3, 30)
    assert lengths_of(micro_batches(rows, padded, budget=12)) == [[2, 3, 4], [5], [9], [30]]
    assert lengths_of(micro_batches(rows, padded, budget=1)) == [[2], [3], [4], [5], [9], [30]]
    assert lengths_of(micro_batches(rows, padded, budget=10**6)) == [[2, 3, 4, 5, 9, 30]]


def test_a_count_of_micro_batches() -> None:
    rows = rows_of(9, 2, 5, 4, 3)
    assert lengths_of(micro_batches(rows, padded, budget=1, parts=2)) == [[2, 3], [4, 5, 9]]
    assert lengths_of(micro_batches(rows, padded, budget=1, parts=1)) == [[2, 3, 4, 5, 9]]
    assert lengths_of(micro_batches(rows[:2], padded, budget=1, parts=4)) == [[2], [9]]  # never an empty one


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 60), st.one_of(st.none(), st.integers(1, 6))
)
def test_no_row_is_lost_and_no_budget_overrun(lengths: list[int], budget: int, parts: int | None) -> None:
    rows = rows_of(*lengths)
    batches = micro_batches(rows, padded, budget=budget, parts=parts)
    assert sorted(example.source.number for batch in batches for example in batch) == list(range(1, len(rows) + 1))
    assert all(batch for batch in batches)
    if parts is None:
        assert all(len(batch) == 1 or padded(batch) <= budget for batch in batches)
    else:
        assert len(batches) == min(parts, len(rows))
