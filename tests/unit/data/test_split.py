from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.conversation import Conversation, Message, Source
from luthier.data.split import find_duplicates, holdout_count, split, unseen
from luthier.errors import RecipeError


def conversation(number: int, *texts: str, system: str = "") -> Conversation:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(texts)]  # type: ignore[arg-type]
    return Conversation((*([Message("system", system)] if system else []), *messages), Source("f", number))


def text(number: int, content: str) -> Conversation:
    return Conversation((Message("text", content),), Source("f", number))


def numbers(conversations: Sequence[Conversation]) -> list[int]:
    return [c.source.number for c in conversations]


# ------------------------------------------------------ duplicates, conflicts


def test_duplicates_and_conflicts_with_their_places() -> None:
    rows = [
        conversation(1, "who", "me"),
        conversation(2, "who", "you"),
        conversation(3, "who", "me"),
        conversation(4, "what", "this"),
        conversation(5, "what", "this"),
        conversation(6, "who", "me"),
        conversation(7, "who", "me", system="S"),
        conversation(8, "a", "b", "who", "me"),
    ]
    found = find_duplicates(rows)
    assert numbers(found.unique) == [1, 2, 4, 7, 8]
    assert [(source.number, first.number) for source, first in found.repeats] == [(3, 1), (5, 4), (6, 1)]
    assert numbers(found.repeated) == [3, 5, 6]
    assert [(c.prompt, c.answers, [s.number for s in c.sources]) for c in found.conflicts] == [("who", 2, [1, 2])]


def test_an_answer_that_differs_only_in_training_is_neither_duplicate_nor_conflict() -> None:
    trained = conversation(1, "who", "me")
    untrained = Conversation((trained.messages[0], Message("assistant", "me", train=False)), Source("f", 2))
    found = find_duplicates([trained, untrained])
    assert (numbers(found.unique), found.repeats, found.conflicts) == ([1, 2], [], [])


def test_documents_repeat_but_never_contradict() -> None:
    found = find_duplicates([text(1, "a"), text(2, "b"), text(3, "a")])
    assert (numbers(found.unique), len(found.repeats), found.conflicts) == ([1, 2], 1, [])


# -------------------------------------------------------------------- split


@pytest.mark.parametrize(
    ("holdout", "rows", "expected"),
    [("5%", 3617, 181), ("2.5 %", 200, 5), ("1%", 10, 1), ("0%", 10, 0), (0, 10, 0), (7, 10, 7), ("5%", 0, 0)],
)
def test_how_many_rows_a_holdout_asks_for(holdout: str | int, rows: int, expected: int) -> None:
    assert holdout_count(holdout, rows) == expected


@pytest.mark.parametrize("holdout", ["five", "0.05", "200", "", "-5%", -1])
def test_a_holdout_that_cannot_be_read(holdout: str | int) -> None:
    with pytest.raises(RecipeError) as caught:
        holdout_count(holdout, 100)
    assert str(caught.value) == (
        f"data.holdout: {holdout!r} is neither a share nor a count of rows\n"
        '  fix: write a share as "5%", a count as 200, or 0 for none'
    )


@pytest.mark.parametrize(("holdout", "rows"), [(10, 10), (11, 10), ("100%", 10), ("5%", 1)])
def test_a_holdout_that_leaves_nothing(holdout: str | int, rows: int) -> None:
    with pytest.raises(RecipeError, match=f"data.holdout: {holdout} of {rows} rows leaves nothing to train on"):
        split([conversation(i, f"q{i}", "a") for i in range(rows)], holdout, seed=1)


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(RecipeError, match="every row has the same prompt, so none can be held out"):
        split([conversation(i, "q", f"a{i}") for i in range(10)], 2, seed=1)


ROWS = [conversation(i, f"question {i}", "a") for i in range(100)]


def test_the_rows_held_out_do_not_depend_on_the_order_and_change_with_the_seed() -> None:
    train, heldout = split(ROWS, "10%", seed=42)
    assert numbers(heldout) == sorted(numbers(heldout))
    assert len(heldout) == 10
    assert sorted(numbers(train) + numbers(heldout)) == list(range(100))
    shuffled = random.Random(0).sample(ROWS, 100)
    assert set(numbers(split(shuffled, "10%", seed=42)[1])) == set(numbers(heldout))
    assert set(numbers(split(ROWS, "10%", seed=43)[1])) != set(numbers(heldout))


def test_the_draw_is_the_same_on_every_machine() -> None:
    assert numbers(split(ROWS, 5, seed=42)[1]) == [5, 30, 37, 62, 63]


def test_more_rows_keep_nearly_all_held_out_rows() -> None:
    grown = [*ROWS, *(conversation(100 + i, f"new {i}", "a") for i in range(10))]
    kept = set(numbers(split(grown, 11, seed=42)[1])) & set(numbers(split(ROWS, 10, seed=42)[1]))
    assert len(kept) >= 8


def test_nothing_held_out() -> None:
    assert split(ROWS, 0, seed=1) == (ROWS, [])


def test_rows_that_share_the_prompt_of_any_turn_stay_together() -> None:
    """1 and 2 share their first prompt, 2 and 3 their second; 4 has the same question under a system prompt."""
    bound = [
        conversation(1, "a", "b"),
        conversation(2, "a", "c", "d", "e"),
        conversation(3, "a", "c", "d", "f"),
        conversation(4, "a", "b", system="S"),
    ]
    for seed in range(20):
        train, heldout = split(bound, 1, seed)
        assert (numbers(train), numbers(heldout)) == ([1, 2, 3], [4])


def test_the_nearest_size_that_whole_groups_allow() -> None:
    """Groups of 5: two of twelve are nearer to one group than to none, eight nearer to two groups than to one."""
    rows = [conversation(10 * g + i, f"q{g}", f"a{i}") for g in range(3) for i in range(5)]
    assert [len(split(rows, wanted, seed=1)[1]) for wanted in (1, 2, 5, 7, 8, 10, 14)] == [5, 5, 5, 5, 10, 10, 10]


def test_a_held_out_file_is_parted_by_whether_a_prompt_of_it_is_trained() -> None:
    train = [conversation(1, "a", "b", "c", "d")]
    heldout = [
        conversation(2, "a", "other"),
        conversation(3, "a", "b", "c", "d"),
        conversation(4, "c", "d"),
        conversation(5, "a", "b", system="S"),
    ]
    assert [numbers(side) for side in unseen(heldout, train)] == [[4, 5], [2, 3]]


QUESTIONS = st.sampled_from("abcdefgh")


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz"), st.sampled_from("abcdefgh")), min_size=2
    ),
    share=st.integers(1, 60),
    seed=st.integers(-5, 5),
)
@settings(deadline=None)
def test_no_prompt_is_on_both_sides(rows: list[tuple[str, str, str]], share: int, seed: int) -> None:
    conversations = [
        conversation(i, question, answer, *((second, "end") if second > "d" else ()))
        for i, (question, answer, second) in enumerate(rows)
    ]
    try:
        train, heldout = split(conversations, f"{share}%", seed)
    except RecipeError:
        assert len({c.messages[0] for c in conversations}) == 1 or share * len(rows) / 100 > len(rows) - 1
        return

    def prompts(side: list[Conversation]) -> set[tuple[Message, ...]]:
        return {c.messages[:i] for c in side for i, m in enumerate(c.messages) if m.role == "assistant"}

    assert train and heldout
    assert not prompts(train) & prompts(heldout)
    assert sorted(numbers(train) + numbers(heldout)) == list(range(len(rows)))
