"""Steps of an epoch, and micro-batches of a step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batches import epoch_steps, even_shares, micro_batches
from luthier.data.conversation import Source
from luthier.data.render import Example
from luthier.engine.engines import FlatEngine, PlainEngine


def rows_of(*lengths: int) -> list[Example]:
    return [
        Example([3] * length, [3] * length, Source("rows.json", number)) for number, length in enumerate(lengths, 1)
    ]


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
    assert lengths_of(micro_batches(rows, PlainEngine(), budget=12)) == [[2, 3, 4], [5], [9], [30]]
    assert lengths_of(micro_batches(rows, PlainEngine(), budget=1)) == [[2], [3], [4], [5], [9], [30]]
    assert lengths_of(micro_batches(rows, PlainEngine(), budget=10**6)) == [[2, 3, 4, 5, 9, 30]]


def starting(prefix: list[int], *own: int) -> list[Example]:
    """Rows of a prefix and one or more tokens of their own, all but the first trained on."""
    return [
        Example([*prefix, *[token] * 10], [-100] * len(prefix) + [token] * 10, Source("rows.json", token))
        for token in own
    ]


def numbers_of(batches: list[list[Example]]) -> list[list[int]]:
    return [[example.source.number for example in batch] for batch in batches]


def test_rows_that_begin_alike_share_a_micro_batch() -> None:
    """Two documents of 20 tokens, rows of 9 more: the last token of each predicts nothing."""
    one, other = starting([1] * 20, 11, 12, 13, 14), starting([2] * 20, 21, 22, 23)
    rows = [one[2], other[1], one[0], other[2], one[3], other[0], one[1]]
    assert numbers_of(micro_batches(rows, FlatEngine(), budget=60)) == [[11, 12, 13, 14], [21, 22, 23]]
    assert numbers_of(micro_batches(rows, FlatEngine(), budget=47)) == [[11, 12, 13], [14], [21, 22, 23]]
    # where none is shared, those of like length do, and these are all of one
    assert numbers_of(micro_batches(rows, FlatEngine(share=False), budget=60)) == [[13, 22], [11, 23], [14, 21], [12]]


def test_a_prefix_longer_than_half_the_budget_is_worth_a_larger_micro_batch() -> None:
    """Up to twice its length: it then costs each of its rows no more than their own tokens do."""
    rows = starting([1] * 30, 11, 12, 13, 14, 15)
    assert numbers_of(micro_batches(rows, FlatEngine(), budget=20)) == [[11, 12, 13], [14, 15]]
    assert numbers_of(micro_batches(rows, FlatEngine(share=False), budget=20)) == [[11], [12], [13], [14], [15]]


def test_the_cost_of_rows() -> None:
    rows = starting([1] * 20, 11, 12, 13)
    assert FlatEngine().cost(rows) == 20 + 3 * 9
    assert FlatEngine(share=False).cost(rows) == 3 * 29
    assert PlainEngine().cost([*rows, *starting([], 14)]) == 4 * 30


def test_a_count_of_micro_batches() -> None:
    rows = rows_of(9, 2, 5, 4, 3)
    assert lengths_of(micro_batches(rows, PlainEngine(), budget=1, parts=2)) == [[2, 3], [4, 5, 9]]
    assert lengths_of(micro_batches(rows, PlainEngine(), budget=1, parts=1)) == [[2, 3, 4, 5, 9]]
    assert lengths_of(micro_batches(rows[:2], PlainEngine(), budget=1, parts=4)) == [[2], [9]]  # never an empty one


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 60), st.one_of(st.none(), st.integers(1, 6))
)
def test_no_row_is_lost_and_no_budget_overrun(lengths: list[int], budget: int, parts: int | None) -> None:
    rows = rows_of(*lengths)
    batches = micro_batches(rows, PlainEngine(), budget=budget, parts=parts)
    assert sorted(example.source.number for batch in batches for example in batch) == list(range(1, len(rows) + 1))
    assert all(batch for batch in batches)
    if parts is None:
        assert all(len(batch) == 1 or PlainEngine().cost(batch) <= budget for batch in batches)
    else:
        assert len(batches) == min(parts, len(rows))


def test_shares_of_a_step_cost_about_the_same() -> None:
    """Padded, by the longest: 18 tokens for the three short rows, 18 for the two long ones."""
    assert lengths_of(even_shares(rows_of(9, 2, 9, 4, 6), PlainEngine(), 2)) == [[2, 4, 6], [9, 9]]
    shared = starting([*range(100, 120)], *range(3, 11))
    assert numbers_of(even_shares(shared, FlatEngine(), 2)) == [[3, 4, 5, 6], [7, 8, 9, 10]]
    assert numbers_of(even_shares(shared, FlatEngine(), 3)) == [[3, 4, 5], [6, 7], [8, 9, 10]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(2, 6))
def test_every_row_is_in_one_share(lengths: list[int], count: int) -> None:
    shares = even_shares(rows_of(*lengths), FlatEngine(share=False), count)
    assert sorted(number for share in numbers_of(shares) for number in share) == list(range(1, len(lengths) + 1))
    assert 1 <= len(shares) <= count
    assert all(shares)
