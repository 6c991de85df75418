"""A flat row and how its sequences lie in it."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine import layout
from luthier.engine.layout import Layout, Segment, Tree, common_prefix, flatten, needed_tokens, order

A, B, C, D, E, F, G, H, J = range(1, 10)


def example(prompt: list[int], answer: list[int]) -> Example:
    return Example(prompt + answer, [IGNORE] * len(prompt) + answer, Source("rows.json", 1))


@pytest.fixture
def any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SAVED", 1)


def test_a_row_is_filled_up_with_its_last_token_at_its_place() -> None:
    batch = flatten([example([A, B], [C]), example([D, E], [F])], multiple=6)
    assert batch.input_ids.tolist() == [[A, B, D, E, E, E]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 1, 1]]  # a model knows no position behind its longest row
    assert batch.predict_at.tolist() == [1, 3]
    assert batch.layout.segments == (Segment(0, 2, 2, 0), Segment(2, 6, 6, 0))
    assert flatten([example([A, B], [C])], multiple=2).input_ids.tolist() == [[A, B]]


@pytest.mark.usefixtures("any_length")
def test_the_picture_of_the_module() -> None:
    batch = flatten([example([A, B, C], [D]), example([A, B, E], [F]), example([A, G], [H, J])])
    assert batch.input_ids.tolist() == [[A, B, C, E, G, H]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 1, 2]]
    assert batch.predict_at.tolist() == [2, 3, 4, 5]
    assert batch.targets.tolist() == [D, F, H, J]
    assert batch.layout == Layout(
        (Segment(0, 1, 6, 0), Segment(1, 2, 4, 1), Segment(2, 3, 3, 2), Segment(3, 4, 4, 2), Segment(4, 6, 6, 1))
    )
    assert batch.layout.num_tokens == 6
    assert batch.layout.longest == 3
    assert batch.layout.shares
    assert batch.layout.until.tolist() == [6, 4, 3, 4, 6, 6]
    assert batch.layout.positions.tolist() == [0, 1, 2, 2, 1, 2]
    assert batch.layout.rows.tolist() == [[0, 1, 2], [0, 1, 3], [0, 4, 5]]
    assert batch.layout.places.tolist() == [0, 1, 2, 5, 7, 8]
    assert batch.layout.mask().int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]
    assert batch.layout.mask(window=2).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_without_sharing_each_sequence_is_whole() -> None:
    batch = flatten([example([A, B], [C]), example([A, B], [D, E])], share=False)
    assert batch.input_ids.tolist() == [[A, B, A, B, D]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2]]
    assert batch.layout == Layout((Segment(0, 2, 2, 0), Segment(2, 5, 5, 0)))
    assert not batch.layout.shares
    assert batch.layout.rows.tolist() == [[0, 1, 1], [2, 3, 4]]
    assert batch.layout.places.tolist() == [0, 1, 3, 4, 5]
    assert (batch.predict_at.tolist(), batch.targets.tolist()) == ([1, 3, 4], [C, D, E])


@pytest.mark.usefixtures("any_length")
def test_a_shared_token_predicts_for_each_sequence() -> None:
    """Answers to one prompt differ behind its last token, and where they begin alike they share their own."""
    batch = flatten([example([A, B], [C, D, E]), example([A, B], [C, F]), example([A, B], [G])])
    assert batch.input_ids.tolist() == [[A, B, C, D]]
    assert batch.predict_at.tolist() == [1, 2, 3, 1, 2, 1]
    assert batch.targets.tolist() == [C, D, E, C, F, G]
    assert batch.example.tolist() == [0, 0, 0, 1, 1, 2]
    assert batch.layout.segments == (Segment(0, 4, 4, 0),)


def test_equal_rows_are_computed_once() -> None:
    batch = flatten([example([A, B, C, D], [E])] * 3)
    assert batch.input_ids.tolist() == [[A, B, C, D]]
    assert (batch.predict_at.tolist(), batch.targets.tolist()) == ([3, 3, 3], [E, E, E])
    assert batch.example.tolist() == [0, 1, 2]


def layout_of(*rows: list[int]) -> list[tuple[int, int, int]]:
    """Of each segment: its length, its depth, and how many tokens lie behind it that begin with it."""
    segments = flatten([example(row, [J]) for row in rows]).layout.segments
    return [(s.end - s.start, s.depth, s.until - s.end) for s in segments]


def test_few_shared_tokens_are_computed_again() -> None:
    """A beginning is a segment where that saves 16 tokens: one of 16 for two rows, one of 6 for four."""
    assert layout.SAVED == 16
    assert layout_of([A] * 15 + [B], [A] * 15 + [C]) == [(16, 0, 0), (16, 0, 0)]
    assert layout_of([A] * 16 + [B], [A] * 16 + [C]) == [(16, 0, 2), (1, 16, 0), (1, 16, 0)]
    assert layout_of(*([A] * 5 + [x] for x in (B, C, D, E))) == [(6, 0, 0)] * 4
    assert layout_of(*([A] * 6 + [x] for x in (B, C, D, E))) == [(6, 0, 4)] + [(1, 6, 0)] * 4


def test_what_few_rows_begin_with_beyond_what_all_do_is_computed_again() -> None:
    """The first two share one token more, which is no reason to cut what all share in two."""
    rows = [[A] * 40 + [B], [A] * 40 + [C], [A] * 39 + [B, D], [A] * 39 + [C, E]]
    assert layout_of(*rows) == [(39, 0, 8)] + [(2, 39, 0)] * 4
    # Steps that save too little each are taken together.
    rows = [[A] * 20 + [B], [A] * 20 + [C], [A] * 11 + [B]]
    assert layout_of(*rows) == [(11, 0, 21), (10, 11, 0), (10, 11, 0), (1, 11, 0)]
    longer = [[A] * 40 + [B], [A] * 40 + [C], [A] * 10 + [B, D], [A] * 10 + [C, E]]
    assert layout_of(*longer) == [(10, 0, 36), (30, 10, 2), (1, 40, 0), (1, 40, 0), (2, 10, 0), (2, 10, 0)]


def test_neighbours_begin_alike_or_are_of_like_length() -> None:
    examples = [example(row, [J]) for row in ([B, A, A], [A, B], [B, A], [A, C, A, A])]
    assert order(examples) == [1, 3, 0, 2]
    assert order(examples, share=False) == [1, 2, 0, 3]


def test_what_shares_nothing() -> None:
    for rows in ([example([A, B, C, D, E], [F])], [example([A, B, C, D, E], [F]), example([B, B, C, D, E], [F])]):
        assert not flatten(rows).layout.shares


def test_what_the_loss_needs() -> None:
    """Nothing is predicted behind the last label, so neither is it computed."""
    assert needed_tokens(example([A, B], [C, D])) == [A, B, C]
    labels = [IGNORE, IGNORE, C, IGNORE, IGNORE]
    assert needed_tokens(Example([A, B, C, D, E], labels, Source("rows.json", 1))) == [A, B]
    assert needed_tokens(example([A, B], [])) == [A]  # a flat row is never empty
    assert needed_tokens(example([], [A])) == [A]


def test_plain_text_learns_nothing_on_its_first_token() -> None:
    batch = flatten([example([], [A, B]), example([], [C, D, E])])
    assert batch.input_ids.tolist() == [[A, C, D]]
    assert (batch.predict_at.tolist(), batch.targets.tolist()) == ([0, 1, 2], [B, D, E])


def test_a_common_prefix() -> None:
    assert common_prefix([], [A]) == 0
    assert common_prefix([A, B], [B, B]) == 0
    assert common_prefix([A, B, C], [A, B, D]) == 2
    assert common_prefix([A, B], [A, B, D]) == 2


rows = st.lists(
    st.tuples(st.lists(st.integers(1, 2), max_size=12), st.lists(st.integers(1, 2), max_size=6)).filter(any),
    min_size=1,
    max_size=7,
)


@given(rows, st.booleans(), st.sampled_from([1, 3, 8]))
def test_every_sequence_is_found_again(drawn: list[tuple[list[int], list[int]]], share: bool, saved: int) -> None:
    """What a token sees, itself included, is the beginning of its sequence: so each loss term has its context."""
    examples = [example(prompt, answer) for prompt, answer in drawn]
    with mock.patch.object(layout, "SAVED", saved):
        batch = flatten(examples, share=share)
    flat, mask = batch.input_ids[0], batch.layout.mask()
    assert torch.equal(batch.layout.positions, batch.position_ids[0])
    assert torch.equal(mask.sum(1) - 1, batch.position_ids[0])
    seen = [flat[mask[at]].tolist() for at in batch.predict_at.tolist()]
    terms = [[*context, target] for context, target in zip(seen, batch.targets.tolist(), strict=True)]
    expected = [
        each.input_ids[: i + 1] for each in examples for i, label in enumerate(each.labels) if i and label != IGNORE
    ]
    assert sorted(terms) == sorted(expected)
    assert batch.layout.segments[0].start == 0
    assert all(a.end == b.start for a, b in zip(batch.layout.segments, batch.layout.segments[1:], strict=False))


@given(rows, st.booleans(), st.sampled_from([1, 3, 8]))
def test_a_tree_counts_what_it_lays_out(drawn: list[tuple[list[int], list[int]]], share: bool, saved: int) -> None:
    unordered = [example(prompt, answer) for prompt, answer in drawn]
    with mock.patch.object(layout, "SAVED", saved):
        tree = Tree(share=share)
        for place in order(unordered, share=share):
            expected = tree.tokens + tree.added(unordered[place])
            tree.add(unordered[place])
            assert tree.tokens == expected == len(tree.lay_out()[0])
