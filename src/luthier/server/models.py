"""The names that a request may ask: the base model and its adapters, some of them added while the server runs."""

from __future__ import annotations

import copy
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.data.conversation import Message
from luthier.data.render import Renderer
from luthier.errors import InputError
from luthier.inference.batcher import Batcher
from luthier.inference.grammar import Grammar, hold_to
from luthier.model.adapters import CARD, read_card
from luthier.report.record import RunFolder
from luthier.server.errors import ApiError, of_input

NAME = re.compile(r"[\w.-][\w.: -]{0,127}")  # of an adapter that a request adds


@dataclass(frozen=True)
class Served:
    """One model name. `renderer` writes its prompts: the same code, template and thinking mode as its training."""

    name: str
    renderer: Renderer
    system: str | None
    is_base: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def to_json(self) -> dict[str, Any]:
        extra = {"system": self.system, "thinking": self.renderer.thinking, "base": self.is_base}
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "luthier",
            "luthier": extra,
        }

    def prompt_ids(self, messages: list[Message], thinking: bool | None) -> list[int]:
        """The prompt as tokens. An own system message takes the place of the run's; an empty one takes it away.

        Raises ApiError where the template cannot write the conversation, or knows no thinking mode.
        """
        if self.system and not any(message.role == "system" for message in messages):
            messages = [Message("system", self.system), *messages]
        spoken = [message for message in messages if message.role != "system" or message.content]
        try:
            return self._renderer(thinking).prompt_ids(spoken)
        except InputError as error:
            raise of_input(error, code="invalid_value") from None

    def grammar(self, schema: dict[str, Any], thinking: bool | None, vocabulary: int) -> Grammar:
        """What holds an answer to a schema, from its first token on. Raises ApiError."""
        renderer = self._renderer(thinking)
        if renderer.thinking:
            what = "response_format: an answer that begins with thinking is no JSON; send enable_thinking: false."
            raise ApiError(400, what, param="response_format", code="unsupported_value")
        try:
            return hold_to(schema, self.renderer, vocabulary)
        except InputError as error:
            raise of_input(error, code="invalid_value", param="response_format") from None

    def text_ids(self, text: str) -> list[int]:
        """A plain text to be continued, as tokens. Raises ApiError."""
        try:
            return self.renderer.text_ids(text)
        except InputError as error:
            raise of_input(error, code="invalid_value") from None

    def _renderer(self, thinking: bool | None) -> Renderer:
        if thinking is None or thinking == self.renderer.thinking:
            return self.renderer
        if self.renderer.thinking is None:
            what = f"enable_thinking: the chat template of {self.name} has no thinking mode."
            raise ApiError(400, what, param="enable_thinking", code="unsupported_value")
        return Renderer(self.renderer.tokenizer, thinking=thinking, stop_ids=self.renderer.stop_ids)


class Models:
    """What is served. Adding and removing are thread-safe, and answers that are being written go on.

    folder: where adapters may be added from while the server runs (`--adapters`); None: from nowhere.
    """

    def __init__(self, batcher: Batcher, base: Served, *, show_base: bool, systems: bool, folder: Path | None) -> None:
        self.batcher, self.base, self.folder = batcher, base, folder
        self._systems = systems
        self._served = {base.name: base} if show_base else {}
        self._changing = threading.Lock()

    def all(self) -> list[Served]:
        return list(self._served.values())

    def get(self, name: str) -> Served:
        """Raises ApiError that names the models there are."""
        found = self._served.get(name)
        if found is None:
            known = ", ".join(self._served) or "none"
            message = f"The model {name!r:.200} does not exist. There are: {known}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return found

    def add(self, adapter: Path, name: str) -> Served:
        """Loads an adapter's folder under a name that is free. Raises InputError for one that does not fit the base."""
        card = read_card(adapter)
        renderer = _renderer_of(card, self.base.renderer)
        with self._changing:
            self.batcher.add(name, adapter)
            system = card["system"] if self._systems else None
            self._served[name] = served = Served(name, renderer, system, is_base=False)
        return served

    # What a request may do. A path that comes over HTTP names a folder directly in `--adapters`, and nothing else.

    def available(self) -> dict[str, Path]:
        """The adapters in `--adapters`, by the name of their folder; a run's folder is one too."""
        if self.folder is None:
            what = "Adapters cannot be changed while the server runs: start it with --adapters FOLDER."
            raise ApiError(403, what, code="adapters_not_allowed")
        folders = sorted(each for each in self.folder.iterdir() if each.is_dir() and not each.is_symlink())
        return {each.name: found for each in folders if (found := find_adapter(each)) is not None}

    def add_named(self, folder: str, name: str | None) -> Served:
        """Raises ApiError."""
        available, name = self.available(), name or folder
        if folder not in available:
            there = ", ".join(available) or "none"
            what = f"There is no adapter {folder!r:.200} in --adapters. There are: {there}."
            raise ApiError(404, what, param="folder", code="adapter_not_found")
        if not NAME.fullmatch(name):
            what = "name: letters, digits, and . : _ - inside, at most 128."
            raise ApiError(400, what, param="name", code="invalid_value")
        if name in self._served or name == self.base.name:
            what = f"The name {name!r} is taken: remove it first, or give another."
            raise ApiError(409, what, param="name", code="name_taken")
        try:
            return self.add(available[folder], name)
        except InputError as error:
            raise of_input(error, code="adapter_not_loaded") from None

    def remove(self, name: str) -> None:
        """Raises ApiError."""
        self.available()
        if self.get(name).is_base:
            raise ApiError(409, f"{name} is the base model, which cannot be removed.", param="model", code="is_base")
        with self._changing:
            if self._served.pop(name, None) is not None:
                self.batcher.remove(name)


def _renderer_of(card: dict[str, Any], base: Renderer) -> Renderer:
    """What writes an adapter's prompts: the base's, unless it was trained with another template or thinking mode."""
    template = card.get("chat_template", base.tokenizer.chat_template)
    thinking, stop_ids = card.get("thinking", base.thinking), card.get("stop_ids", base.stop_ids)
    if (template, thinking, stop_ids) == (base.tokenizer.chat_template, base.thinking, base.stop_ids):
        return base
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = template
    return Renderer(tokenizer, thinking=thinking, stop_ids=stop_ids)


def find_adapter(path: Path) -> Path | None:
    """The folder with the adapter: of a run, or the adapter's own. None where there is neither."""
    folders = (RunFolder(path).adapter_dir, path)
    return next((folder for folder in folders if (folder / CARD).is_file() and not folder.is_symlink()), None)
