"""From tokens to text, piece by piece: no half characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for bytes that are no character (yet)


class Writer:
    """Writes the text of one answer.

    A character of several tokens is given when its last one is there, and text that may be the beginning of a stop
    string when it is known not to be. A stop string ends the text and is not part of it; of several, the one that is
    complete first, and then the longest, however the text is cut into tokens.

    Args:
        tokenizer: of transformers; special tokens are left out.
        stop: the stop strings.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = [each for each in stop if each]
        self._before: list[int] = []  # the tokens of the latest piece: what a token's text is may depend on them
        self._new: list[int] = []  # those that are no whole characters yet
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that is certain after one more token. After a stop string, nothing."""
        if self.stopped:
            return ""
        self._new.append(token_id)
        text = self._text()
        if text.endswith(UNKNOWN):
            return ""
        self._before, self._new = self._new, []
        return self._until_stop(text)

    def flush(self) -> str:
        """What was still held, when no token follows. Bytes that never became a character are left out."""
        if self.stopped:
            return ""
        text = self._until_stop(self._text().rstrip(UNKNOWN))
        held, self._held, self._before, self._new = self._held, "", [], []
        return text + held

    def _text(self) -> str:
        """Of the new tokens."""
        return self._decode(self._before + self._new)[len(self._decode(self._before)) :]

    def _until_stop(self, new: str) -> str:
        """Takes text in, and gives what cannot be part of a stop string."""
        text = self._held + new
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
