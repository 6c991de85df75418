"""The chat template that travels: whoever applies it without options asks as the model was trained."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from luthier.data.render import Renderer
from luthier.model.adapters import CARD, CONFIG, read_card
from luthier.model.files import read_object
from luthier.report.record import RunFolder


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


def save_adapter(run: RunFolder, folder: Path, *, base: str) -> None:
    """The run's adapter with the template and the stop tokens that travel.

    `base`: its model's name for other people than the owner.
    """
    from transformers import AutoTokenizer, GenerationConfig

    shutil.copytree(run.adapter_dir, folder, dirs_exist_ok=True)
    card = read_card(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = default_thinking(card["chat_template"], card["thinking"])
    tokenizer.save_pretrained(folder)
    # The base's own may stop elsewhere than the template that was trained.
    GenerationConfig(eos_token_id=card["stop_ids"], pad_token_id=card["stop_ids"][0]).save_pretrained(folder)
    _change(folder / CONFIG, base_model_name_or_path=base)
    name_base(folder, base)


def name_base(folder: Path, base: str) -> None:
    """Has the folder's luthier.json name its base as other people know it, and no folder of this machine."""
    _change(folder / CARD, base=base)


def _change(file: Path, **values: Any) -> None:
    text = json.dumps({**read_object(file), **values}, indent=2, ensure_ascii=False)
    file.write_text(f"{text}\n", encoding="utf-8")
