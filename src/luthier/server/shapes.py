"""What is answered, in the shapes of OpenAI's API."""

from __future__ import annotations

import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from transformers.convert_slow_tokenizer import bytes_to_unicode

from luthier.inference.batcher import Token
from luthier.server.answering import Draft, Piece, Writing

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


class Shape(ABC):
    """Of one request: `whole` at the end, or a chunk for each piece.

    Args:
        model: the name that was asked.
        tokenizer: for the text of single tokens.
        logprobs: whether the request wants them.
    """

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    prefix: ClassVar[str]

    def __init__(self, model: str, tokenizer: Any, *, logprobs: bool) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.model, self.tokenizer, self.logprobs, self.created = model, tokenizer, logprobs, int(time.time())

    def whole(self, writing: Writing) -> dict[str, Any]:
        return {**self._head(self.kind), "choices": list(map(self.choice, writing.drafts)), "usage": writing.usage()}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None, *, tell_usage: bool) -> dict[str, Any]:
        return {**self._head(self.chunk_kind), "choices": choices, **({"usage": usage} if tell_usage else {})}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def opening(self, choice: int) -> dict[str, Any] | None:
        """The first chunk of a choice, before its text."""
        return None

    @abstractmethod
    def choice(self, draft: Draft) -> dict[str, Any]:
        """A choice as `whole` has it."""

    @abstractmethod
    def part(self, piece: Piece) -> dict[str, Any]:
        """A choice as a chunk has it."""


class Chat(Shape):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, choice: int) -> dict[str, Any]:
        return self._delta(choice, {"role": "assistant", "content": ""}, (), None)

    def part(self, piece: Piece) -> dict[str, Any]:
        return self._delta(piece.choice, {"content": piece.text} if piece.text else {}, piece.tokens, piece.finish)

    def _delta(self, choice: int, delta: dict[str, Any], tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        return {"index": choice, "delta": delta, "logprobs": self._told(tokens), "finish_reason": finish}

    def choice(self, draft: Draft) -> dict[str, Any]:
        message = {"role": "assistant", "content": draft.text, "refusal": None}
        told = self._told(draft.tokens, empty=True)
        return {"index": draft.choice, "message": message, "logprobs": told, "finish_reason": draft.finish}

    def _told(self, tokens: Sequence[Token], *, empty: bool = False) -> dict[str, Any] | None:
        if not self.logprobs or not (tokens or empty):
            return None
        return {"content": [{**self._token(t.id, t.logprob), "top_logprobs": self._top(t)} for t in tokens]}

    def _top(self, token: Token) -> list[dict[str, Any]]:
        return [self._token(id, logprob) for id, logprob in token.top]

    def _token(self, id: int, logprob: float) -> dict[str, Any]:
        raw = bytes_of(self.tokenizer, id)
        return {"token": self.tokenizer.decode([id]), "logprob": logprob, "bytes": list(raw)}


class Completion(Shape):
    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str, tokenizer: Any, *, logprobs: bool) -> None:
        super().__init__(model, tokenizer, logprobs=logprobs)
        self._told_until: dict[int, int] = {}  # characters of each choice whose tokens were told

    def part(self, piece: Piece) -> dict[str, Any]:
        return self._text(piece.choice, piece.text, piece.tokens, piece.finish)

    def choice(self, draft: Draft) -> dict[str, Any]:
        return self._text(draft.choice, draft.text, draft.tokens, draft.finish)

    def _text(self, choice: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        told = self._told(choice, tokens) if self.logprobs else None
        return {"index": choice, "text": text, "logprobs": told, "finish_reason": finish}

    def _told(self, choice: int, tokens: Sequence[Token]) -> dict[str, Any]:
        texts, offsets, at = [str(self.tokenizer.decode([t.id])) for t in tokens], [], self._told_until.get(choice, 0)
        for text in texts:
            offsets.append(at)
            at += len(text)
        self._told_until[choice] = at
        return {
            "tokens": texts,
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{str(self.tokenizer.decode([i])): p for i, p in t.top} for t in tokens],
            "text_offset": offsets,
        }


def bytes_of(tokenizer: Any, id: int) -> bytes:
    """The bytes of a token, which may be a part of a character: of a byte-level vocabulary, or written as `<0xE4>`."""
    text = str(tokenizer.decode([id]))
    if "\N{REPLACEMENT CHARACTER}" not in text:
        return text.encode()
    raw = str(tokenizer.convert_ids_to_tokens(id))
    if found := re.fullmatch(r"<0x([0-9A-F]{2})>", raw):
        return bytes([int(found[1], 16)])
    return bytes(BYTE_OF[c] for c in raw) if all(c in BYTE_OF for c in raw) else text.encode()
