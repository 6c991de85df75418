"""Answers from a model: many at once, or one as it is written. Prompts come from the same renderer as training's."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch

from luthier.data.conversation import Message
from luthier.data.render import Renderer
from luthier.engine.instance import evaluating
from luthier.inference.adapters import Adapters
from luthier.inference.batcher import Answer
from luthier.inference.decode import Decoder, Running
from luthier.inference.pick import pick_decoder
from luthier.inference.text import Writer

AT_ONCE = 16  # answers
KEPT_BYTES = 1 << 28  # of keys and values that prompts begin with


def answer_all(
    model: Any, renderer: Renderer, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int
) -> list[str]:
    """The greedy answer to each prompt, with the model's adapter if it has one."""
    asked = [(prompt, _adapter(model)) for prompt in prompts]
    return _texts(renderer, _answers(model, renderer, asked, max_new_tokens))


def begin_answer(
    decoder: Decoder,
    adapter: str | None,
    renderer: Renderer,
    prompt: Sequence[Message],
    *,
    max_new_tokens: int,
    given_up: Callable[[], bool] = lambda: False,
) -> tuple[str, int]:
    """The first tokens of the greedy answer, and how many they are; it ends where `given_up` says so."""
    request = Running(renderer.prompt_ids(prompt), adapter)
    begin = len(request.ids)
    greedy(decoder, [request], frozenset(renderer.stop_ids), max_new_tokens, given_up)
    decoder.end(request, keep=False)
    return _text(renderer, request.ids[begin:]), len(request.ids) - begin


def answer_with_and_without(
    model: Any, renderer: Renderer, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int
) -> tuple[list[str], list[str]]:
    """The greedy answers of a PeftModel to each prompt, and those of its base: all of them generated together."""
    asked = [(prompt, key) for key in (_adapter(model), None) for prompt in prompts]
    found = _texts(renderer, _answers(model, renderer, asked, max_new_tokens))
    return found[: len(prompts)], found[len(prompts) :]


def pieces(answer: Answer, tokenizer: Any) -> Generator[str, None, None]:
    """The text of an answer as it is generated. Whoever stops reading ends it with the token in progress."""
    writer = Writer(tokenizer)
    try:
        for token in answer:
            if piece := writer.push(token.id):
                yield piece
        if piece := writer.flush():
            yield piece
    finally:
        answer.cancel()


def _adapter(model: Any) -> str | None:
    return next(iter(Adapters(model).loaded), None)


def _answers(
    model: Any,
    renderer: Renderer,
    asked: Sequence[tuple[Sequence[Message], str | None]],
    max_new_tokens: int,
) -> list[list[int]]:
    """The tokens of each answer, the one that ends it included."""
    if not asked:
        return []
    requests = [Running(renderer.prompt_ids(prompt), adapter) for prompt, adapter in asked]
    begins = [len(request.ids) for request in requests]
    decode(model, requests, frozenset(renderer.stop_ids), max_new_tokens)
    return [request.ids[begin:] for request, begin in zip(requests, begins, strict=True)]


def decode(model: Any, requests: Sequence[Running], stop_ids: frozenset[int], max_new_tokens: int) -> None:
    """Adds to each request its likeliest tokens, up to the first stop token; AT_ONCE of them together."""
    with evaluating(model), torch.no_grad():
        decoder = pick_decoder(Adapters(model), kept_bytes=KEPT_BYTES).value
        try:
            greedy(decoder, requests, stop_ids, max_new_tokens)
        finally:
            decoder.close()


def greedy(
    decoder: Decoder,
    requests: Sequence[Running],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    given_up: Callable[[], bool] = lambda: False,
) -> None:
    """Adds to each request its likeliest tokens, up to the first stop token; it ends where `given_up` says so."""
    left = {id(request): max_new_tokens for request in requests}
    waiting = list(reversed(requests))
    running: list[Running] = []
    while (waiting or running) and not given_up():
        running += [waiting.pop() for _ in range(min(AT_ONCE - len(running), len(waiting)))]
        ready, logits = decoder.step(running)
        for request, token in zip(ready, logits.argmax(-1).tolist(), strict=True):
            request.ids.append(token)
            left[id(request)] -= 1
            if token in stop_ids or left[id(request)] == 0:
                running.remove(request)
                decoder.end(request, keep=False)


def _texts(renderer: Renderer, answers: list[list[int]]) -> list[str]:
    return [_text(renderer, answer) for answer in answers]


def _text(renderer: Renderer, ids: list[int]) -> str:
    """The answer up to its first stop token, which is not part of the text."""
    end = next((i for i, token in enumerate(ids) if token in renderer.stop_ids), len(ids))
    return str(renderer.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
