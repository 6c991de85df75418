"""A request's answers as they are written: tokens of the batcher's thread become pieces of text in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import InputError
from luthier.inference.batcher import Answer, Ask, Batcher, Token
from luthier.inference.grammar import Grammar
from luthier.inference.text import Writer
from luthier.server.errors import ApiError, of_input
from luthier.server.models import Served
from luthier.server.protocol import Generation


@dataclass(frozen=True)
class Limits:
    """waiting: requests that may wait for their turn. max_tokens: of an answer, where the request does not say.
    context: what prompt and answer may have together; None: no limit is known."""

    waiting: int = 128
    max_tokens: int = 512
    context: int | None = None


@dataclass(frozen=True)
class Piece:
    """What came at once of one choice: its text, the tokens it was read from, and how it ended if it did."""

    choice: int
    text: str
    tokens: tuple[Token, ...]
    finish: str | None


@dataclass
class Draft:
    """One choice being written."""

    choice: int
    answer: Answer
    writer: Writer
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    count: int = 0
    finish: str | None = None
    _held: list[Token] = field(default_factory=list)

    def advance(self) -> Piece | None:
        """What came since the last call, without waiting. Raises what generating raised."""
        done = self.answer.done
        new, text = self.answer.take(), ""
        for token in new:
            self.count += 1
            self._held.append(token)
            text += self.writer.push(token.id)
            if self.writer.stopped:
                break
        if done and not self.writer.stopped:
            self.answer.take()  # raises the failure behind the last tokens
            text += self.writer.flush()
        if self.writer.stopped:
            self.answer.cancel()
            self.finish = "stop"
        elif done:
            self.finish = self.answer.finish
        if not text and self.finish is None:
            return None
        told = [] if self.writer.stopped and not text else self._held
        piece = Piece(self.choice, text, tuple(told), self.finish)
        self.text, self.tokens, self._held = self.text + text, self.tokens + told, []
        return piece


class Writing:
    """All choices of one request. `cancel` frees the model for others; whoever makes a Writing must end with it."""

    def __init__(self, drafts: list[Draft], prompt_tokens: int, choices: int) -> None:
        self.drafts, self.prompt_tokens, self._choices = drafts, prompt_tokens, choices
        self.began, self.first = time.monotonic(), 0.0

    async def pieces(self) -> AsyncIterator[Piece]:
        """Raises ApiError where the server stops in the middle, and what generating raised."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(changed.set)

        for draft in self.drafts:
            draft.answer.notify(tell)
        while writing := [draft for draft in self.drafts if draft.finish is None]:
            await changed.wait()
            changed.clear()
            for draft in writing:
                piece = draft.advance()
                self.first = self.first or (time.monotonic() if draft.count else 0.0)
                if draft.finish == "cancelled":
                    raise ApiError(503, "The server is stopping.", code="stopping", headers={"Retry-After": "5"})
                if piece is not None:
                    yield piece

    async def whole(self) -> None:
        """Until every choice is written."""
        async for _ in self.pieces():
            pass

    def cancel(self) -> None:
        for draft in self.drafts:
            draft.answer.cancel()

    def usage(self) -> dict[str, Any]:
        """A prompt counts once, however many choices it has."""
        written = sum(draft.count for draft in self.drafts)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens()},
        }

    def cached_tokens(self) -> int:
        return sum(draft.answer.cached_tokens for draft in self.drafts[:: self._choices])

    def facts(self) -> dict[str, Any]:
        """For the log: no text."""
        usage, now = self.usage(), time.monotonic()
        return {
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": self.cached_tokens(),
            "completion_tokens": usage["completion_tokens"],
            "finish": ",".join(draft.finish or "cancelled" for draft in self.drafts),
            "first_token_seconds": round(self.first - self.began, 4) if self.first else None,
            "writing_seconds": round(now - self.first, 4) if self.first else None,
        }


def begin(
    batcher: Batcher,
    limits: Limits,
    served: Served,
    prompts: Sequence[list[int]],
    asked: Generation,
    grammar: Grammar | None = None,
) -> Writing:
    """Hands the request's asks to the batcher. Raises ApiError where it is too long, or too many wait already."""
    asks = [
        Ask(
            prompt,
            served.name,
            asked.sampling(_room(limits, len(prompt), asked.most_tokens()), choice),
            grammar and grammar.copy(),
        )
        for prompt in prompts
        for choice in range(asked.n)
    ]
    if batcher.waiting() + batcher.running() + len(asks) > batcher.max_batch + limits.waiting:
        what = f"{batcher.waiting()} requests are waiting already; try again in a moment."
        raise ApiError(429, what, code="queue_full", headers={"Retry-After": "1"})
    answers: list[Answer] = []
    try:
        for ask in asks:
            answers.append(batcher.submit(ask))
    except InputError as error:
        for answer in answers:
            answer.cancel()
        raise of_input(error, code="invalid_value") from None
    tokenizer = served.renderer.tokenizer
    drafts = [Draft(i, answer, Writer(tokenizer, asked.stop)) for i, answer in enumerate(answers)]
    return Writing(drafts, sum(map(len, prompts)), asked.n)


def _room(limits: Limits, prompt: int, asked: int | None) -> int:
    """How long the answer may be."""
    wanted = asked or limits.max_tokens
    if limits.context is None:
        return wanted
    room = limits.context - prompt
    if room < (asked or 1):
        what = f"{prompt:,} tokens of the prompt and {asked or 1:,} of the answer" if asked else f"{prompt:,} tokens"
        message = f"This model's context is {limits.context:,} tokens, and the request has {what}. Shorten it."
        raise ApiError(400, message, param="messages", code="context_length_exceeded")
    return min(wanted, room)
