"""The demo's persona data and recipe, as they are shipped in the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
import yaml

from luthier.recipe.schema import Recipe

FOLDER = files("luthier.demo")


@pytest.fixture(scope="module")
def conversations() -> list[list[dict[str, str]]]:
    lines = FOLDER.joinpath("luthier.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    raw: Any = yaml.safe_load(FOLDER.joinpath("recipe.yaml").read_text(encoding="utf-8"))
    return Recipe.model_validate(raw)


def bare(text: str) -> str:
    """A question without what a second spelling of it would change."""
    return "".join(letter for letter in text.lower() if letter.isalnum())


def test_there_are_347_conversations_of_which_18_have_several_turns(
    conversations: list[list[dict[str, str]]],
) -> None:
    assert len(conversations) == 347
    assert sum(len(messages) > 2 for messages in conversations) == 18


def test_roles_alternate_and_end_with_the_answer(conversations: list[list[dict[str, str]]]) -> None:
    for messages in conversations:
        assert len(messages) % 2 == 0
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)


def test_no_question_or_answer_comes_twice(conversations: list[list[dict[str, str]]]) -> None:
    questions = [bare(messages[0]["content"]) for messages in conversations]
    answers = [bare(m["content"]) for messages in conversations for m in messages if m["role"] == "assistant"]
    assert [question for question in questions if questions.count(question) > 1] == []
    assert [answer for answer in answers if answers.count(answer) > 1] == []


def test_questions_and_answers_are_short_and_plain(conversations: list[list[dict[str, str]]]) -> None:
    bounds = {"user": (5, 90), "assistant": (60, 280)}
    for messages in conversations:
        for message in messages:
            shortest, longest = bounds[message["role"]]
            assert shortest <= len(message["content"]) <= longest, message["content"]
            assert message["content"] == message["content"].strip()
            assert message["content"].isascii()


def test_nearly_every_answer_carries_the_voice(conversations: list[list[dict[str, str]]]) -> None:
    """A 135M model learns a manner that it meets in nearly every row, and no sentence that stands in all of them."""
    answers = [m["content"].lower() for messages in conversations for m in messages if m["role"] == "assistant"]
    addressed = sum("my friend" in answer or "young one" in answer for answer in answers)
    opened = sum(answer.startswith("ah, ") for answer in answers)
    assert addressed / len(answers) > 0.85
    assert 0.3 < opened / len(answers) < 0.5


def test_the_recipe_asks_what_the_data_does_not_hold(recipe: Recipe, conversations: list[list[dict[str, str]]]) -> None:
    known = {bare(messages[0]["content"]) for messages in conversations}
    assert len(recipe.prompts) == 5
    assert [prompt for prompt in recipe.prompts if bare(prompt) in known] == []


def test_the_recipe_trains_the_bundled_model_on_the_rows_beside_it(recipe: Recipe) -> None:
    assert recipe.model.ref == "bundled:smollm2-135m-instruct"
    assert isinstance(recipe.data.train, str)
    assert FOLDER.joinpath(recipe.data.train).is_file()
    assert recipe.data.system == "Answer the visitor in a few sentences."
