"""Qwen3's own tokenizer and template: the label check on a real thinking model, thinking on and off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.data.conversation import Conversation, Message, Source
from luthier.data.render import IGNORE, Renderer
from luthier.errors import ModelError, Problem
from luthier.model import load
from luthier.recipe.schema import ModelSettings

pytestmark = pytest.mark.real

SYSTEM = Message("system", "现在你要扮演皇帝身边的女人--甄嬛")
WHO = Message("user", "你是谁？")
ZHEN = Message("assistant", "我是甄嬛，家父是大理寺少卿甄远道。")
WHERE = Message("user", "Where do you live?")
PALACE = Message("assistant", "In the palace.")
THOUGHT = Message("assistant", "In the palace.", reasoning="She asks for a place.")

START, END, NEWLINE, THINK, THINK_END, BLANK_LINE = 151644, 151645, 198, 151667, 151668, 271
SYSTEM_IDS = [START, 8948, NEWLINE, 99601, 105182, 102889, 104937, 102144, 106354, 313, 109628, 123591, END, NEWLINE]
WHO_IDS = [START, 872, NEWLINE, 105043, 100165, 11319, END, NEWLINE]
WHERE_IDS = [START, 872, NEWLINE, 9064, 653, 498, 3887, 30, END, NEWLINE]
ASSISTANT_IDS = [START, 77091, NEWLINE]
NO_THOUGHT_IDS = [THINK, BLANK_LINE, THINK_END, BLANK_LINE]
ZHEN_IDS = [104198, 109628, 123591, 3837, 45629, 99910, 20412, 103683, 101277, 82647]
ZHEN_IDS += [106987, 109628, 99427, 44793, 1773, END]
PALACE_IDS = [641, 279, 43339, 13, END]
THOUGHT_IDS = [THINK, NEWLINE, 7941, 17064, 369, 264, 1992, 624, THINK_END, BLANK_LINE, *PALACE_IDS]


@pytest.fixture(scope="module")
def tokenizer(qwen3_folder: Path) -> Any:
    return load.load_tokenizer(qwen3_folder, ModelSettings(ref="Qwen/Qwen3-0.6B"))


def render(tokenizer: Any, thinking: bool, *messages: Message) -> list[tuple[list[int], list[int]]]:
    """Prompt and trained tokens of each sequence; nothing is trained before the one or ends after the other."""
    renderer = Renderer(tokenizer, thinking=thinking)
    pairs = []
    for example in renderer.examples(Conversation(messages, Source("rows.json", 1))):
        border = example.prompt_length
        assert example.labels == [IGNORE] * border + example.input_ids[border:]
        pairs.append((example.input_ids[:border], example.input_ids[border:]))
    return pairs


def test_thinking_is_off_where_the_recipe_says_nothing(tokenizer: Any) -> None:
    choice = load.pick_thinking(tokenizer, None)
    assert choice.value is False
    assert choice.reason == "rows hold answers, not thinking; set model.thinking: true for rows with reasoning"


def test_thinking_off(tokenizer: Any) -> None:
    assert render(tokenizer, False, SYSTEM, WHO, ZHEN) == [
        ([*SYSTEM_IDS, *WHO_IDS, *ASSISTANT_IDS, *NO_THOUGHT_IDS], ZHEN_IDS)
    ]


def test_thinking_off_several_turns(tokenizer: Any) -> None:
    first = [*WHO_IDS, *ASSISTANT_IDS]
    assert render(tokenizer, False, WHO, ZHEN, WHERE, PALACE) == [
        ([*first, *NO_THOUGHT_IDS], ZHEN_IDS),
        ([*first, *ZHEN_IDS, NEWLINE, *WHERE_IDS, *ASSISTANT_IDS, *NO_THOUGHT_IDS], PALACE_IDS),
    ]


def test_thinking_on(tokenizer: Any) -> None:
    assert render(tokenizer, True, SYSTEM, WHERE, THOUGHT) == [
        ([*SYSTEM_IDS, *WHERE_IDS, *ASSISTANT_IDS], THOUGHT_IDS),
    ]


def test_thinking_on_without_a_thought_learns_to_skip_it(tokenizer: Any) -> None:
    assert render(tokenizer, True, WHO, ZHEN) == [([*WHO_IDS, *ASSISTANT_IDS], [*NO_THOUGHT_IDS, *ZHEN_IDS])]


def test_thinking_on_several_turns_drops_the_thoughts_of_earlier_ones(tokenizer: Any) -> None:
    answered = Message("assistant", "In the palace.", reasoning="Who asks?")
    first, second = render(tokenizer, True, WHERE, answered, WHERE, THOUGHT)
    assert first[0] == [*WHERE_IDS, *ASSISTANT_IDS]
    assert tokenizer.decode(first[1]) == "<think>\nWho asks?\n</think>\n\nIn the palace.<|im_end|>"
    assert second == (
        [*WHERE_IDS, *ASSISTANT_IDS, *PALACE_IDS, NEWLINE, *WHERE_IDS, *ASSISTANT_IDS],
        THOUGHT_IDS,
    )


@pytest.mark.parametrize("thinking", [False, True])
def test_the_prompt_is_stock_transformers_own(tokenizer: Any, thinking: bool) -> None:
    """What any server that applies the model's template sends."""
    messages = (SYSTEM, WHO, ZHEN, WHERE)
    served = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        add_generation_prompt=True,
        enable_thinking=thinking,
        return_dict=False,
    )
    *_, (prompt, _) = render(tokenizer, thinking, *messages, PALACE)
    assert prompt == served


def test_a_thought_with_thinking_off_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ModelError) as raised:
        render(tokenizer, False, WHERE, THOUGHT)
    assert raised.value.problems == (
        Problem(
            "chat template, rows.json, row 1",
            "the prompt goes on with '\\n</think>\\n\\n' and the text with the answer with "
            "'She asks for a place.\\n</think>\\n\\nIn the p', so which tokens to train would be a guess",
            "set model.thinking: true, or name another template: model.chat_template: chatml",
        ),
    )


def test_a_special_token_in_a_question_is_text(tokenizer: Any) -> None:
    prompt = Renderer(tokenizer, thinking=False).prompt_ids([Message("user", "<|im_end|>")])
    assert prompt == [START, 872, NEWLINE, 27, 91, 318, 6213, 91, 29, END, NEWLINE, *ASSISTANT_IDS, *NO_THOUGHT_IDS]
