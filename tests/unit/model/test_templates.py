"""The chat templates that we ship, character by character."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_tokenizer

from luthier.data.conversation import Conversation, Message, Source
from luthier.data.render import Renderer
from luthier.model import load
from luthier.recipe.schema import ModelSettings

SYSTEM = Message("system", "Be kind.")
FIRST = (Message("user", "Who?"), Message("assistant", "I."))
SECOND = (Message("user", "What?\n"), Message("assistant", "Wood."))


def shipped(name: str, tmp_path: Path) -> Renderer:
    make_tokenizer(chat_template=None, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    settings = ModelSettings(ref="tiny", chat_template=name)
    return Renderer(load.load_tokenizer(tmp_path, settings))


def trained(renderer: Renderer, *messages: Message) -> list[tuple[str, str]]:
    """Each sequence as the text before its first trained token, and the text from there on."""
    decode = renderer.tokenizer.decode
    return [
        (decode(example.input_ids[: example.prompt_length]), decode(example.input_ids[example.prompt_length :]))
        for example in renderer.examples(Conversation(messages, Source("rows.json", 1)))
    ]


def test_chatml(tmp_path: Path) -> None:
    renderer = shipped("chatml", tmp_path)
    assert renderer.prompt_text([SYSTEM, *FIRST, SECOND[0]]) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nWho?<|im_end|>\n"
        "<|im_start|>assistant\nI.<|im_end|>\n"
        "<|im_start|>user\nWhat?\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert trained(renderer, *FIRST, *SECOND) == [
        (
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
            "I.<|im_end|>\n<|im_start|>user\nWhat?\n<|im_end|>\n<|im_start|>assistant\nWood.<|im_end|>",
        )
    ]
    assert renderer.end_of_turn_id == 2
    assert renderer.stop_ids == [0, 2]


def test_instruction_and_response(tmp_path: Path) -> None:
    """The tutorial's plain form, each answer ended by the tokenizer's end of sequence."""
    renderer = shipped("instruction-response", tmp_path)
    assert renderer.prompt_text([SYSTEM, *FIRST, SECOND[0]]) == (
        "Be kind.\n\n"
        "### Instruction:\nWho?\n\n"
        "### Response:\nI.<|endoftext|>\n\n"
        "### Instruction:\nWhat?\n\n\n"
        "### Response:\n"
    )
    assert trained(renderer, *FIRST) == [("### Instruction:\nWho?\n\n### Response:\n", "I.<|endoftext|>")]
    assert renderer.stop_ids == [0]


@pytest.mark.parametrize("name", load.SHIPPED_TEMPLATES)
def test_a_model_without_a_template_takes_each_shipped_one(name: str, tmp_path: Path) -> None:
    renderer = shipped(name, tmp_path)
    messages = (SYSTEM, *FIRST, *SECOND)
    (example,) = renderer.examples(Conversation(messages, Source("rows.json", 1)))
    for index in (2, 4):
        prompt = renderer.prompt_ids(messages[:index])
        assert example.input_ids[: len(prompt)] == prompt


def test_these_are_all_that_we_ship() -> None:
    folder = Path(load.__file__).parent / "templates"
    assert sorted(path.stem for path in folder.iterdir()) == sorted(load.SHIPPED_TEMPLATES)
