"""Answers from a model: many at once, or one as it is written. Prompts come from the same renderer as training's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch

from luthier.data.conversation import Message
from luthier.data.render import Renderer
from luthier.engine.instance import evaluating


def answer_all(
    model: Any, renderer: Renderer, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int
) -> list[str]:
    """The greedy answer to each prompt, generated together (padded on the left, where a causal mask can hide it)."""
    if not prompts:
        return []
    ids = [renderer.prompt_ids(prompt) for prompt in prompts]
    width, pad = max(map(len, ids)), renderer.end_of_turn_id
    input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    output = _generate(model, renderer, input_ids, mask, max_new_tokens=max_new_tokens, do_sample=False)
    return [_text(renderer, row[width:].tolist()) for row in output]


def begin_answer(
    model: Any,
    renderer: Renderer,
    prompt: Sequence[Message],
    *,
    max_new_tokens: int,
    given_up: Callable[[], bool] = lambda: False,
) -> tuple[str, int]:
    """The first tokens of the greedy answer, and how many they are; it ends where `given_up` says so."""
    ids = torch.tensor([renderer.prompt_ids(prompt)], device=model.device)
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "stopping_criteria": [_when(given_up)]}
    [output] = _generate(model, renderer, ids, torch.ones_like(ids), **options)
    answer = output[ids.shape[1] :].tolist()
    return _text(renderer, answer), len(answer)


def stream(
    model: Any,
    renderer: Renderer,
    messages: Sequence[Message],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Generator[str, None, None]:
    """Pieces of the answer as they are generated. Temperature 0 is greedy."""
    from threading import Event, Thread

    from transformers import TextIteratorStreamer

    ids = torch.tensor([renderer.prompt_ids(messages)], device=model.device)
    streamer = TextIteratorStreamer(renderer.tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    options = {**sampling, "max_new_tokens": max_new_tokens, "streamer": streamer}
    given_up = Event()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            _generate(model, renderer, ids, torch.ones_like(ids), stopping_criteria=[_when(given_up.is_set)], **options)
        except BaseException as error:  # handed to the reader below, who waits on the streamer
            failure.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        given_up.set()  # the reader went away (Ctrl-C): generation ends with the token in progress
        thread.join()
    if failure:
        raise failure[0]


def _when(asked: Callable[[], bool]) -> Any:
    """A stopping criterion that holds once it is asked for."""

    def stop(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), asked(), device=input_ids.device)

    return stop


def _generate(model: Any, renderer: Renderer, input_ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
    """`model.generate` with our stop tokens; sampling defaults that the model folder brings are not mixed in."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        eos_token_id=renderer.stop_ids,
        pad_token_id=renderer.end_of_turn_id,
        use_cache=True,
        max_new_tokens=options.pop("max_new_tokens"),
        **{name: options.pop(name) for name in ("do_sample", "temperature", "top_p") if name in options},
    )
    with evaluating(model), torch.no_grad(), _contiguous_states(model):
        return model.generate(input_ids=input_ids, attention_mask=mask, generation_config=config, **options)


@contextlib.contextmanager
def _contiguous_states(model: Any) -> Iterator[None]:
    """The hidden states of the prompts' last tokens come to the head in one piece.

    As a slice of a batch, torch would multiply them with a copy of the head's weights for each prompt.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda head, states: tuple(state.contiguous() for state in states)
    )
    try:
        yield
    finally:
        hook.remove()


def _text(renderer: Renderer, ids: list[int]) -> str:
    """The answer up to its first stop token, which is not part of the text."""
    end = next((i for i, token in enumerate(ids) if token in renderer.stop_ids), len(ids))
    return str(renderer.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
