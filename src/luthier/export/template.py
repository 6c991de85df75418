"""The chat template that travels: whoever applies it without options asks as the model was trained."""

from __future__ import annotations

import copy
from pathlib import Path

from luthier.data.render import Renderer


def default_thinking(template: str, thinking: bool | None) -> str:
    """The template with the run's thinking mode where nobody says otherwise; `enable_thinking` still can.

    Luthier passes the mode at every prompt. Other programs pass none, and would ask in the template's own default.
    """
    if thinking is None:
        return template
    asked = str(thinking).lower()
    return f"{{%- if enable_thinking is not defined %}}{{%- set enable_thinking = {asked} %}}{{%- endif -%}}" + template


def save_tokenizer(renderer: Renderer, folder: Path) -> None:
    """The run's tokenizer with the template that travels."""
    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.chat_template = default_thinking(tokenizer.chat_template, renderer.thinking)
    tokenizer.save_pretrained(folder)
