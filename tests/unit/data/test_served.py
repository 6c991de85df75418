"""A row that is not trained as it would be asked does not pass, wherever its tokens came from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny import QWEN3, make_tokenizer

from luthier.data import served
from luthier.data.conversation import Conversation, Message, Source
from luthier.data.render import IGNORE, Example, Renderer
from luthier.errors import CheckFailed

ROW = Conversation(
    (
        Message("system", "You are a luthier."),
        Message("user", "Who are you?"),
        Message("assistant", "I make violins."),
        Message("user", "What wood?"),
        Message("assistant", "Spruce."),
    ),
    Source("rows.jsonl", 7, "line"),
)


@pytest.mark.parametrize(("template", "thinking"), [(None, None), (QWEN3, False)], ids=["chatml", "qwen3"])
@pytest.mark.parametrize(("train_on", "turns"), [("all", 2), ("last", 1)])
def test_what_the_renderer_makes_passes(
    tokenizer: Any, template: str | None, thinking: bool | None, train_on: Any, turns: int
) -> None:
    renderer = Renderer(make_tokenizer(template) if template else tokenizer, thinking=thinking)
    assert served.check(renderer, [(ROW, renderer.examples(ROW, train_on))], train_on) == turns


def wrong(tokenizer: Any, change: Any) -> str:
    renderer = Renderer(tokenizer)
    examples = [change(example) for example in renderer.examples(ROW)]
    with pytest.raises(CheckFailed) as caught:
        served.check(renderer, [(ROW, examples)], "all")
    return "; ".join(f"{problem.where}: {problem.what}" for problem in caught.value.problems)


def test_an_untrained_end_of_turn_does_not_pass(tokenizer: Any) -> None:
    def without_end(example: Example) -> Example:
        return replace(example, labels=[*example.labels[:-1], IGNORE])

    assert wrong(tokenizer, without_end) == (
        "rows.jsonl, line 7: its end-of-turn token is not trained: the model would not learn to stop"
    )


def test_another_prompt_does_not_pass(tokenizer: Any) -> None:
    def other_system(example: Example) -> Example:
        return replace(example, input_ids=[*example.input_ids[:4], 9, *example.input_ids[5:]])

    assert wrong(tokenizer, other_system) == (
        "rows.jsonl, line 7: turn 3 is not trained behind the prompt that chat would send; "
        "rows.jsonl, line 7: turn 5 is not trained behind the prompt that chat would send"
    )
