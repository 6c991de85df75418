from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from luthier.data.conversation import Conversation, Message, Source
from luthier.data.formats import FORMATS, Converted, convert
from luthier.data.sources import Kind, Rows
from luthier.errors import DataError
from luthier.recipe.schema import DataSettings


def converted(*rows: dict[str, Any], kind: Kind = "json", **settings: Any) -> Converted:
    sourced = [(Source("f", number), row) for number, row in enumerate(rows, 1)]
    return convert(Rows(sourced, kind, "utf-8", "", Path("f")), DataSettings(train="f", **settings))


def messages(row: dict[str, Any], **settings: Any) -> list[tuple[str, str]]:
    [conversation] = converted(row, **settings).conversations
    return [(m.role, m.content) for m in conversation.messages]


def problems(*rows: dict[str, Any], **settings: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(DataError) as caught:
        converted(*rows, **settings)
    return [(p.where, p.what, p.fix) for p in caught.value.problems]


def complaints(*rows: dict[str, Any], **settings: Any) -> list[str]:
    return [f"{where}: {what}" for where, what, _ in problems(*rows, **settings)]


PAIR = [("user", "Hi"), ("assistant", "Yes")]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


# ----------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alpaca", {"instruction": "Hi", "output": "Yes"}),
        ("alpaca", {"instruction": "Hi", "input": None, "output": "Yes", "history": None, "system": ""}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]}),
        ("sharegpt", {"conversations": TURNS}),
        ("messages", {"messages": TURNS}),
        ("messages", {"messages": [{**turn, "from": None, "value": None, "train": None} for turn in TURNS]}),
        ("prompt_completion", {"prompt": "Hi", "completion": "Yes"}),
    ],
)
def test_each_format_is_recognised_and_gives_the_same_conversation(name: str, row: dict[str, Any]) -> None:
    found = converted(row)
    assert found.format.value == name
    assert list(found.conversations) == [
        Conversation((Message("user", "Hi"), Message("assistant", "Yes")), Source("f", 1))
    ]
    assert found.conversations[0].source == Source("f", 1)
    assert found.unused == []


def test_alpaca_with_everything() -> None:
    row = {"system": "S", "instruction": "Translate", "input": "今天", "output": "Today", "history": [["q", "a"]]}
    assert messages(row) == [
        ("system", "S"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "Translate\n今天"),
        ("assistant", "Today"),
    ]


def test_text_is_one_message_and_nothing_is_altered() -> None:
    assert messages({"text": " two\n lines "}) == [("text", " two\n lines ")]


def test_turns_with_a_tool_reasoning_and_untrained_answers() -> None:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "call", "train": False},
        {"role": "tool", "content": "r1"},
        {"role": "tool", "content": "r2"},
        {"role": "assistant", "content": "a", "weight": 0},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "b", "weight": 1, "reasoning_content": "hm"},
    ]
    [conversation] = converted({"messages": turns}).conversations
    assert conversation.messages == (
        Message("system", "S"),
        Message("user", "u"),
        Message("assistant", "call", train=False),
        Message("tool", "r1"),
        Message("tool", "r2"),
        Message("assistant", "a", train=False),
        Message("user", "v"),
        Message("assistant", "b", train=True, reasoning="hm"),
    )


def test_the_recipes_system_prompt_goes_where_a_row_has_none() -> None:
    rows = [{"messages": TURNS}, {"messages": [{"role": "system", "content": "own"}, *TURNS]}]
    rows += [{"messages": TURNS, "system": "of the row"}, {"messages": TURNS, "system": ""}]
    found = converted(*rows, system="default")
    assert [c.messages[0].content for c in found.conversations] == ["default", "own", "of the row", "default"]
    assert problems({"text": "x"}, system="default") == [
        ("data.system", "plain text has no system prompt", "take data.system out of the recipe")
    ]


# ----------------------------------------------------------------- choosing


def test_the_format_that_most_rows_have_is_chosen_and_the_others_named() -> None:
    rows = [{"instruction": "Hi", "output": "Yes", "text": "Hi Yes", "id": 1} for _ in range(3)]
    found = converted(*rows)
    assert (found.format.value, found.format.reason) == (
        "alpaca",
        "every row has instruction and output; text would fit too",
    )
    assert found.unused == ["text", "id"]
    assert complaints(*rows, {"messages": TURNS}) == ["f, row 4: has no `instruction`", "f, row 4: has no `output`"]


def test_a_format_set_in_the_recipe_is_obeyed() -> None:
    row = {"instruction": "Hi", "output": "Yes", "text": "Hi Yes"}
    found = converted(row, format="text")
    assert (found.format.value, found.format.reason) == ("text", "set by data.format")
    assert [m.content for m in found.conversations[0].messages] == ["Hi Yes"]


def test_columns_maps_our_names_to_theirs() -> None:
    row = {"question": "Hi", "answer": "Yes", "id": 3}
    found = converted(row, columns={"instruction": "question", "output": "answer"})
    assert (found.format.value, found.format.reason) == ("alpaca", "every row has question and answer")
    assert [(m.role, m.content) for m in found.conversations[0].messages] == PAIR
    assert found.unused == ["id"]
    assert messages({"chat": TURNS}, columns={"messages": "chat"}) == PAIR


def test_a_column_given_to_one_field_is_not_read_as_another() -> None:
    row = {"input": "Hi", "output": "Yes"}
    assert messages(row, columns={"instruction": "input"}) == PAIR


@pytest.mark.parametrize(
    ("row", "mapping", "nearest"),
    [
        ({"question": "q", "answer": "a"}, "instruction: question, output: answer", "alpaca"),
        ({"instruction": "q", "answer": "a"}, "output: answer", "alpaca"),
        ({"问题": "q", "答案": "a"}, 'instruction: "问题", output: "答案"', "alpaca"),
        ({"Instruction": "q", "Output": "a"}, "instruction: Instruction, output: Output", "alpaca"),
        ({"my text": "q", "no": "a"}, "instruction: YOUR_COLUMN, output: YOUR_COLUMN", "alpaca"),
        ({"dialogue": []}, "messages: dialogue", "messages"),
    ],
)
def test_when_nothing_fits_the_error_shows_the_mapping_to_write(
    row: dict[str, Any], mapping: str, nearest: str
) -> None:
    [(where, what, fix)] = problems(row)
    needed = {"alpaca": "instruction and output", "messages": "messages"}[nearest]
    assert where == "f"
    assert what == f"its columns ({', '.join(row)}) fit no format; the nearest is {nearest}, which needs {needed}"
    assert fix == f"say in the recipe which column is which: data: {{columns: {{{mapping}}}}}"


def test_what_an_error_proposes_can_be_written_and_works() -> None:
    import yaml

    row = {"问题": "Hi", "no": "Yes"}
    [(_, _, fix)] = problems(row)
    mapping = yaml.safe_load(fix.split(": ", 1)[1])["data"]["columns"]
    assert mapping == {"instruction": "问题", "output": "YOUR_COLUMN"}
    assert messages(row, columns={**mapping, "output": "no"}) == PAIR


def test_a_csv_without_header_is_told_what_its_first_line_must_be() -> None:
    [(_, _, fix)] = problems({"Hello": "x", "Hi there": "y"}, kind="csv")
    assert fix.endswith("; the first line of the file must hold the columns' names")


def test_a_format_that_the_file_does_not_have() -> None:
    [(_, what, fix)] = problems({"prompt": "q", "completion": "a"}, format="alpaca")
    assert what == "its columns (prompt, completion) are not those of data.format alpaca, which needs " + (
        "instruction and output"
    )
    assert fix.endswith("data: {columns: {instruction: prompt, output: completion}}")


def test_a_mapping_that_names_what_does_not_exist() -> None:
    fields = "completion, conversations, history, input, instruction, messages, output, prompt, system, text"
    assert problems({"question": "q"}, columns={"instrction": "question", "output": "questoin"}) == [
        ("data.columns.instrction", "no format has such a field", f"use one of {fields}"),
        ("data.columns.output", "the file has no column 'questoin'", "did you mean question?"),
    ]
    [(_, what, _)] = problems({"a": "q", "b": "r"}, columns={"instruction": "a", "text": "b"})
    assert what == "data.columns names instruction, text, which no one format has together"


# -------------------------------------------------------------- what is wrong


def test_every_bad_field_of_every_row_is_named() -> None:
    good = {"instruction": "Hi", "output": "Yes"}
    assert problems(
        good,
        {"instruction": "Hi"},
        {"instruction": "Hi", "output": None},
        {"instruction": " \n", "output": ""},
        {"instruction": ["Hi"], "output": 5, "input": {"a": 1}},
        {**good, "history": [["q"], ["q", 1]], "system": True},
        {**good, "history": "none"},
    ) == [
        ("f, row 2", "has no `output`", "add `output`, or delete the row"),
        ("f, row 3", "`output` is null, not text", "write it as text, or delete the row"),
        ("f, row 4", "`instruction` is empty", "fill it in, or delete the row"),
        ("f, row 4", "`output` is empty", "fill it in, or delete the row"),
        ("f, row 5", "`instruction` is a list, not text", "write it as text, or delete the row"),
        ("f, row 5", "`input` is an object, not text", "write it as text, or delete the row"),
        ("f, row 5", "`output` is the number 5, not text", "write it as text, or delete the row"),
        ("f, row 6", "`system` is true, not text", "write it as text, or delete the row"),
        ("f, row 6", "history 1 is not a pair", "write each as [question, answer]"),
        ("f, row 6", "answer of history 2 is the number 1, not text", "write it as text, or delete the row"),
        ("f, row 7", "`history` is text, not a list", "write it as a list, or delete the row"),
    ]


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (turns("assistant"), ["turn 1 (assistant) stands first"]),
        (turns("system", "assistant"), ["turn 2 (assistant) stands after system"]),
        (turns("user", "user", "assistant"), ["turn 2 (user) stands after user"]),
        (turns("user", "assistant", "assistant"), ["turn 3 (assistant) stands after assistant"]),
        (turns("user", "tool", "assistant"), ["turn 2 (tool) stands after user"]),
        (turns("user", "assistant", "system"), ["turn 3 (system) stands after assistant", "the last turn is system"]),
        (turns("user", "assistant", "user"), ["the last turn is user, so there is no answer to learn"]),
        (turns("user", "bot"), ["turn 2 has the role 'bot'"]),
        ({**turns("system", "user", "assistant"), "system": "S"}, ["turn 1 (system) stands after system"]),
        ({"messages": []}, ["`messages` is an empty list"]),
        ({"messages": None}, ["`messages` is null, not a list"]),
        ({"messages": ["Hi"]}, ["turn 1 is text, not an object"]),
        ({"messages": [{"content": "x"}]}, ["turn 1 has no role"]),
        ({"messages": [TURNS[0], {"role": "assistant"}]}, ["content of turn 2 (assistant) is null, not text"]),
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": " ", "tool_calls": [{}]}]},
            ["turn 2 has `tool_calls`", "content of turn 2 (assistant) is empty"],
        ),
        (
            {"messages": [TURNS[0], {**TURNS[1], "train": "no", "weight": 0.5, "reasoning_content": 3}]},
            [
                "turn 2: train is text, weight is the number 0.5",
                "reasoning_content of turn 2 is the number 3, not text",
            ],
        ),
    ],
)
def test_turns_that_cannot_be_a_conversation(row: dict[str, Any], expected: list[str]) -> None:
    found = complaints(row)
    assert len(found) == len(expected)
    assert all(text.startswith(f"f, row 1: {start}") for text, start in zip(found, expected, strict=True)), found


def test_fields_of_turns_that_nothing_reads_are_reported_once() -> None:
    row = {"messages": [{**TURNS[0], "name": "Ann"}, {**TURNS[1], "name": None, "loss": True}]}
    assert converted(row, row).unused == ["name (of a turn)", "loss (of a turn)"]


def test_twenty_problems_are_listed_and_the_others_counted() -> None:
    found = problems(*[{"instruction": "Hi", "output": ""}] * 1000)
    assert len(found) == 21
    assert found[-1] == ("f", "980 more problems like these", "correct those above first")


# --------------------------------------------------------------------- docs


@pytest.mark.parametrize("page", ["data.md", "data.zh-CN.md"])
def test_each_example_of_the_docs_is_of_the_format_it_shows(page: str) -> None:
    text = (Path(__file__).parents[3] / "docs" / page).read_text(encoding="utf-8")
    examples = re.findall(r"```json (\w+)\n(.*?)```", text, re.DOTALL)
    assert sorted(name for name, _ in examples) == sorted(FORMATS)
    for name, example in examples:
        found = converted(json.loads(example))
        assert (found.format.value, found.format.reason.count("would fit"), found.unused) == (name, 0, [])
