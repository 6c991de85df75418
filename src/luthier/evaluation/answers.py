"""What the base and the tuned model answer to the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.data.conversation import Conversation, Message
from luthier.data.render import Renderer
from luthier.inference.generate import answer_with_and_without

HELDOUT_SHOWN = 6
MAX_NEW_TOKENS = 128


def questions(
    heldout: Sequence[Conversation], asked: Sequence[str], system: str | None
) -> list[tuple[tuple[Message, ...], str | None]]:
    """Prompts with their reference answer: those asked for by the recipe, then the first held-out rows'."""
    before = (Message("system", system),) if system else ()
    own: list[tuple[tuple[Message, ...], str | None]] = [((*before, Message("user", text)), None) for text in asked]
    rows = [heldout[index] for index in quoted(heldout)]
    return own + [(row.prompt, row.messages[-1].content) for row in rows]


def quoted(heldout: Sequence[Conversation]) -> list[int]:
    """Which held-out rows are asked: the first that end with an answer."""
    return [index for index, row in enumerate(heldout) if row.messages[-1].role == "assistant"][:HELDOUT_SHOWN]


def compare(
    model: Any, renderer: Renderer, asked: Sequence[tuple[tuple[Message, ...], str | None]]
) -> list[dict[str, Any]]:
    """Base and tuned answers, greedy, as `answers` of run.json. `model` is a PeftModel, which holds both."""
    prompts = [prompt for prompt, _ in asked]
    tuned, base = answer_with_and_without(model, renderer, prompts, max_new_tokens=MAX_NEW_TOKENS)
    return [
        {
            "prompt": prompt[-1].content,
            "system": prompt[0].content if prompt[0].role == "system" else None,
            "reference": reference,
            "base": base[index],
            "tuned": tuned[index],
        }
        for index, (prompt, reference) in enumerate(asked)
    ]
