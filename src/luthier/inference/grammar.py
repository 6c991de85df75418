"""Answers held to a JSON schema: which tokens may come next, as the library llguidance says."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.data.render import Renderer
from luthier.errors import InputError, Problem

LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As json.dumps writes it: where any white space may come, small models write it without end."""


class Grammar:
    """Where one answer stands in what it may be.

    Args:
        matcher: llguidance's, which this Grammar owns.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def copy(self) -> Grammar:
        """For another answer from here on."""
        return Grammar(self._matcher.deep_copy())

    def hide(self, logits: Tensor) -> None:
        """Makes those of logits [vocabulary] -inf whose token may not come next: at the end, all but stop tokens."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = torch.from_numpy(np.unpackbits(bits, count=len(logits), bitorder="little")).bool()
        logits.masked_fill_(~allowed.to(logits.device), -torch.inf)

    def take(self, token: int) -> None:
        """One token further. Raises RuntimeError where the grammar has become too complex to go on."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():  # it then asks for a stop token, and takes it
            raise RuntimeError(f"the answer cannot be held to its schema: {_said(self._matcher.get_error())}")


def hold_to(schema: dict[str, Any], renderer: Renderer, vocabulary: int) -> Grammar:
    """What a model's answers may be: JSON that the schema describes, and then a stop token.

    Args:
        vocabulary: how many logits the model gives, which may be more than its tokenizer's tokens.

    Raises:
        InputError: the library is not installed, or the schema is wrong or uses what cannot be held to.
    """
    if importlib.util.find_spec("llguidance") is None:
        fix = "whoever runs the server can: pip install llguidance"
        raise InputError(Problem("response_format", "this server cannot hold answers to a schema", fix))
    from llguidance import LLMatcher

    try:
        written = LLMatcher.grammar_from_json_schema(schema, overrides=LAYOUT)
        matcher = LLMatcher(_tokens(renderer, vocabulary), written, log_level=0)
        wrong = matcher.get_error()
    except ValueError as error:  # a tokenizer that is not a fast one
        wrong = str(error)
    if wrong:
        what = f"answers cannot be held to this schema: {_said(wrong)}"
        raise InputError(Problem("response_format", what, "change it, or leave that out"))
    return Grammar(matcher)


@functools.lru_cache(maxsize=16)
def _tokens(renderer: Renderer, vocabulary: int) -> Any:
    """The bytes of all tokens, and which of them end an answer: takes a second."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(renderer.tokenizer, n_vocab=vocabulary, eos_token=renderer.stop_ids)


def _said(error: str) -> str:
    """On one line, without the parser's state."""
    return " ".join(error.partition("<state>")[0].split())
