"""The template that travels asks as the run did, in programs that pass no options."""

from __future__ import annotations

from tiny import CHATML, QWEN3, make_tokenizer

from luthier.data.conversation import Message
from luthier.data.render import Renderer
from luthier.export.template import default_thinking

ASKED = [{"role": "user", "content": "Hi"}]


def test_the_runs_thinking_mode_is_the_default_and_can_be_changed() -> None:
    for thinking in (True, False):
        tokenizer = make_tokenizer(QWEN3)
        expected = Renderer(make_tokenizer(QWEN3), thinking=thinking).prompt_text([Message("user", "Hi")])
        other = Renderer(make_tokenizer(QWEN3), thinking=not thinking).prompt_text([Message("user", "Hi")])
        tokenizer.chat_template = default_thinking(QWEN3, thinking)
        ask = {"tokenize": False, "add_generation_prompt": True}
        assert tokenizer.apply_chat_template(ASKED, **ask) == expected
        assert tokenizer.apply_chat_template(ASKED, **ask, enable_thinking=not thinking) == other != expected


def test_a_template_without_the_mode_stays_as_it_is() -> None:
    assert default_thinking(CHATML, None) == CHATML
