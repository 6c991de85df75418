"""A conversation in the terminal, asked exactly as the model was trained."""

from __future__ import annotations

import contextlib

from luthier import console
from luthier.data.conversation import Message
from luthier.errors import InputError
from luthier.inference.batcher import Answer, Ask, Batcher
from luthier.inference.generate import pieces
from luthier.inference.opened import Opened
from luthier.inference.sample import Sampling

BASE, TUNED = "base", "tuned"


class Chat:
    """Asks an opened run or model. What was said before is not computed again.

    Args:
        system: the system prompt of every conversation.
    """

    def __init__(self, opened: Opened, system: str | None, sampling: Sampling) -> None:
        self.start = [Message("system", system)] if system else []
        self._renderer = opened.renderer
        self._sampling = sampling
        self._model = BASE if opened.run is None else TUNED
        self._batcher = Batcher(opened, name=TUNED, base=BASE)

    def answer(self, messages: list[Message]) -> str:
        """Streams the answer to the console and returns it. Raises InputError for more than the model takes."""
        return self._show(self._ask(messages, self._model))

    def both(self, messages: list[Message]) -> tuple[str, str]:
        """The answers of base and tuned model, generated together and shown one after the other."""
        answers = [self._ask(messages, model) for model in (BASE, TUNED)]
        console.say(BASE, style="bold")
        base = self._show(answers[0])
        console.say(TUNED, style="bold")
        return base, self._show(answers[1])

    def converse(self, *, compare: bool = False) -> None:
        """Asks and answers until Ctrl-D. Ctrl-C stops an answer; `/reset` forgets what was said."""
        messages = list(self.start)
        console.say("Ctrl-D ends, Ctrl-C stops an answer, /reset begins anew.", style="dim")
        while (text := console.ask("› ")) is not None:
            if text.strip() == "/reset":
                messages = list(self.start)
            elif text.strip():
                asked = [*messages, Message("user", text)]
                try:
                    said = self.both(asked)[1] if compare else self.answer(asked)
                except InputError as error:
                    console.warn(f"{error.problems[0].what}; /reset begins anew")
                else:
                    messages = [*asked, Message("assistant", said)]

    def _ask(self, messages: list[Message], model: str) -> Answer:
        return self._batcher.submit(Ask(self._renderer.prompt_ids(messages), model, self._sampling))

    def _show(self, answer: Answer) -> str:
        said = ""
        written = pieces(answer, self._renderer.tokenizer)
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(written):
            for piece in written:
                said += piece
                console.write(piece)
        console.say()
        return said.strip()
