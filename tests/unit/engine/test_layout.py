"""A flat row and how its sequences lie in it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine.layout import Layout, flatten, shared_prefix

A, B, C, D, E, F, G, H = range(1, 9)


def example(prompt: list[int], answer: list[int]) -> Example:
    return Example(prompt + answer, [IGNORE] * len(prompt) + answer, Source("rows.json", 1))


def test_the_picture_of_the_module() -> None:
    examples = [example([A, B, C], [D]), example([A, B, E], []), example([A, B, F], [G, H])]
    batch = flatten(examples)
    assert batch.input_ids.tolist() == [[A, B, C, D, E, F, G, H]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 2, 3, 4]]
    assert batch.layout == Layout(prefix=2, lengths=(2, 1, 3))
    assert batch.predict_at.tolist() == [2, 5, 6]  # C predicts D, F predicts G, G predicts H
    assert batch.targets.tolist() == [D, G, H]
    assert batch.layout.num_tokens == 8
    assert batch.layout.own_index.tolist() == [[2, 3, 3], [4, 4, 4], [5, 6, 7]]
    assert batch.layout.own_places.tolist() == [0, 1, 3, 6, 7, 8]


def test_without_sharing_each_sequence_is_whole() -> None:
    batch = flatten([example([A, B], [C]), example([A, B], [D, E])], share=False)
    assert batch.input_ids.tolist() == [[A, B, C, A, B, D, E]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert batch.layout == Layout(prefix=0, lengths=(3, 4))
    assert (batch.predict_at.tolist(), batch.targets.tolist()) == ([1, 4, 5], [C, D, E])


def test_a_prefix_ends_before_the_token_that_predicts_the_first_label() -> None:
    equal = [example([A, B, C], [D]), example([A, B, C], [E])]
    assert shared_prefix(equal) == 2
    assert flatten(equal).input_ids.tolist() == [[A, B, C, D, C, E]]


def test_what_shares_nothing() -> None:
    assert shared_prefix([example([A, B, C], [D])]) == 0  # a row alone
    assert shared_prefix([example([A, B], [C]), example([B, B], [C])]) == 0
    assert shared_prefix([example([], [A, B]), example([], [A, C])]) == 0  # plain text: a label from the first token on
    assert shared_prefix([example([A], [B]), example([A], [C])]) == 0


def test_the_shortest_prompt_limits_the_prefix() -> None:
    assert shared_prefix([example([A, B, C, D], [E]), example([A, B, C], [D, E])]) == 2


def test_plain_text_learns_nothing_on_its_first_token() -> None:
    batch = flatten([example([], [A, B]), example([], [C, D, E])])
    assert (batch.predict_at.tolist(), batch.targets.tolist()) == ([0, 2, 3], [B, D, E])


rows = st.lists(
    st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.lists(st.integers(1, 3), min_size=1, max_size=4)),
    min_size=1,
    max_size=5,
)


@given(rows, st.booleans())
def test_nothing_is_lost_and_nothing_stands_twice(drawn: list[tuple[list[int], list[int]]], share: bool) -> None:
    """Prefix and own tokens of each sequence, put together again, are the sequence; so are its labels."""
    examples = [example(prompt, answer) for prompt, answer in drawn]
    batch = flatten(examples, share=share)
    layout, flat = batch.layout, batch.input_ids[0]
    assert layout.num_tokens == len(flat) == len(batch.position_ids[0])
    assert torch.equal(layout.own_index.flatten()[layout.own_places], torch.arange(layout.prefix, len(flat)))
    for row, (each, length) in enumerate(zip(examples, layout.lengths, strict=True)):
        own = layout.own_index[row, :length]
        assert [*flat[: layout.prefix].tolist(), *flat[own].tolist()] == each.input_ids
        assert batch.position_ids[0, own].tolist() == list(range(layout.prefix, len(each.input_ids)))
    answers = [token for each in examples for token in each.input_ids[each.prompt_length :]]
    assert batch.targets.tolist() == answers
    assert len(batch.predict_at) == sum(each.num_labels for each in examples)
    assert bool((batch.predict_at >= layout.prefix).all())
