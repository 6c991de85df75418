"""A conversation in the terminal, asked exactly as the model was trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from luthier import console
from luthier.data.conversation import Message
from luthier.inference.generate import stream
from luthier.inference.opened import Opened


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 0.95


def answer(opened: Opened, messages: list[Message], sampling: Sampling, *, base: bool = False) -> str:
    """Streams one answer to the console and returns it. `base`: without the adapter."""
    said = ""
    with _adapter_off(opened) if base else contextlib.nullcontext():
        for piece in _stream(opened, messages, sampling):
            said += piece
            console.write(piece)
    console.say()
    return said.strip()


def start(opened: Opened, system: str | None) -> list[Message]:
    """The messages that every conversation begins with."""
    return [Message("system", system)] if system else []


def converse(opened: Opened, system: str | None, sampling: Sampling, *, compare: bool = False) -> None:
    """Asks and answers until Ctrl-D. Ctrl-C stops an answer; `/reset` forgets what was said."""
    messages = start(opened, system)
    console.say("Ctrl-D ends, Ctrl-C stops an answer, /reset begins anew.", style="dim")
    while (text := console.ask("› ")) is not None:
        if text.strip() == "/reset":
            messages = start(opened, system)
        elif text.strip():
            messages.append(Message("user", text))
            messages.append(Message("assistant", _reply(opened, messages, sampling, compare=compare)))


def _reply(opened: Opened, messages: list[Message], sampling: Sampling, *, compare: bool) -> str:
    if compare:
        console.say("base", style="bold")
        answer(opened, messages, sampling, base=True)
        console.say("tuned", style="bold")
    return answer(opened, messages, sampling)


def _stream(opened: Opened, messages: list[Message], sampling: Sampling) -> Iterator[str]:
    pieces = stream(
        opened.model,
        opened.renderer,
        messages,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
    )
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(pieces):
        yield from pieces


def _adapter_off(opened: Opened) -> contextlib.AbstractContextManager[None]:
    return opened.model.disable_adapter()  # type: ignore[no-any-return]
