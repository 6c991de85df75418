"""The flat row of running requests gives the tokens that each gives alone, and keeps what it computed."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny import FAMILIES, add_adapter, make_model

from luthier.inference import together
from luthier.inference.adapters import FIRST, Adapters
from luthier.inference.decode import Decoder, OneByOne, Running
from luthier.inference.kept import BLOCK
from luthier.inference.pick import pick_decoder
from luthier.inference.together import Together

ALONE = {
    "qwen3_5": "layers of kind linear_attention keep something else than keys and values",
    "gemma4": "it cannot take a flat row (its layers do not all keep keys and values of the same size)",
    "lfm2": "layers of kind conv keep something else than keys and values",
    "nemotron": "it cannot take a flat row (its attention is not told which token belongs to which request)",
}


def adapters_on(model: Any) -> Adapters:
    return Adapters(model.eval())


def greedy(decoder: Decoder, requests: list[Running], count: int, *, joining: int = 1) -> list[list[int]]:
    """`count` tokens of each, a request more taken up before each of the first steps."""
    lengths = {id(request): len(request.ids) + count for request in requests}
    waiting, running = list(requests), []
    with torch.no_grad():
        while waiting or running:
            running += [waiting.pop(0) for _ in range(min(joining, len(waiting)))]
            ready, logits = decoder.step(running)
            for request, row in zip(ready, logits, strict=True):
                request.ids.append(int(row.argmax()))
                if len(request.ids) == lengths[id(request)]:
                    running.remove(request)
                    decoder.end(request, keep=True)
    return [request.ids[-count:] for request in requests]


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 400) for _ in range(length)] for length in lengths]


def pick(model: Any, **options: Any) -> tuple[Together, OneByOne]:
    adapters = adapters_on(model)
    found = pick_decoder(adapters, **{"kept_bytes": 1 << 20, **options}).value
    assert isinstance(found, Together)
    return found, OneByOne(adapters)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_together_as_alone(family: str) -> None:
    """Prompts shorter and longer than a window, with and without an adapter, joining and leaving one by one."""
    asked = [(ids, adapter) for ids in prompts(5, 3, 21, 1, 12) for adapter in (None, FIRST)]
    plain = OneByOne(adapters_on(add_adapter(make_model(family))))
    expected = greedy(plain, [Running(list(ids), adapter) for ids, adapter in asked], 12)
    adapters = adapters_on(add_adapter(make_model(family)))
    way = pick_decoder(adapters, kept_bytes=1 << 20)
    if family in ALONE:
        assert way.reason == f"one request at a time: {ALONE[family]}"
    else:
        assert way.reason.startswith("requests together in one forward; its logits differ from the plain ones by ")
        assert isinstance(way.value, Together)
        assert way.value.mixed == (family != "gpt2")  # whose linear layer is another: adapters take turns
    requests = [Running(list(ids), adapter) for ids, adapter in asked]
    assert greedy(way.value, requests, 12) == expected


def test_heads_laid_as_a_gpu_lays_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention kernels give [B, H, N, D] as a view of [B, N, H, D]."""
    own = together.scaled_dot_product_attention

    def attend(*args: Any, **options: Any) -> torch.Tensor:
        return own(*args, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(together, "scaled_dot_product_attention", attend)
    pick(add_adapter(make_model("qwen3")))


def test_one_by_one_computes_logits_of_the_last_token_alone() -> None:
    model = add_adapter(make_model("qwen3_5"))
    widths: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    greedy(OneByOne(adapters_on(model)), [Running([5, 6, 7, 8], FIRST), Running([9, 10], None)], 3, joining=2)
    assert widths == [1] * 6


def test_long_prompts_are_computed_in_parts_beside_running_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "CHUNK", 7)
    decoder, _ = pick(make_model("llama"))
    sizes: list[list[int]] = []  # tokens of each part, step by step
    forward = decoder._forward

    def recorded(parts: list[together.Part]) -> Any:
        found = forward(parts)
        sizes.append([part.end - part.start for part in parts])
        return found

    monkeypatch.setattr(decoder, "_forward", recorded)
    short, long = prompts(3, 20)
    found = greedy(decoder, [Running(list(short), None), Running(list(long), None)], 5)
    assert sizes[:5] == [[3], [1, 7], [1, 7], [1, 6], [2]]
    plain = OneByOne(adapters_on(make_model("llama")))
    assert found == greedy(plain, [Running(list(short), None), Running(list(long), None)], 5)


def test_answers_outgrow_their_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "SMALLEST_POOL", 4)
    asked = prompts(3, 5, 2, 9)
    expected = greedy(OneByOne(adapters_on(make_model("llama"))), [Running(list(p), None) for p in asked], 30)
    decoder, _ = pick(make_model("llama"))
    assert greedy(decoder, [Running(list(p), None) for p in asked], 30, joining=2) == expected
    assert (decoder._pools, dict(decoder._owners)) == ({}, {})


def test_what_a_prompt_begins_with_is_taken_from_an_earlier_one() -> None:
    decoder, _ = pick(add_adapter(make_model("llama")))
    system, one, two = prompts(20, 4, 6)
    first = Running(system + one, None)
    answer = greedy(decoder, [first], 5)[0]
    follow = Running([*system, *one, *answer, *two], None)
    other = Running(system + two, None)
    same = Running(system + one, None)
    tuned = Running(system + one, FIRST)
    requests = [follow, other, same, tuned]
    expected = greedy(
        OneByOne(adapters_on(add_adapter(make_model("llama")))), [Running(list(r.ids), r.adapter) for r in requests], 5
    )
    assert greedy(decoder, requests, 5) == expected
    # The last token of an answer is never computed, and of the same prompt one has to be.
    assert [request.reused for request in requests] == [28, 20, 23, 0]


def test_a_common_beginning_is_computed_once_for_those_that_come_together() -> None:
    decoder, _ = pick(make_model("llama"))
    system, *rest = prompts(30, 4, 5, 6)
    requests = [Running(system + each, None) for each in rest]
    greedy(decoder, requests, 3, joining=3)
    assert [request.reused for request in requests] == [0, 30, 30]


def test_what_is_kept_is_bounded_and_the_latest_used() -> None:
    size = 2 * 2 * (16 + 16) * 4  # of a token
    decoder, _ = pick(make_model("llama"), kept_bytes=4 * BLOCK * size)
    assert decoder.shape.token_bytes == size
    a, b, c = prompts(20, 20, 20)
    for ids in (a, b, a, c):  # b goes, which was not used for longest
        greedy(decoder, [Running(list(ids), None)], 6)
    again = [Running(list(ids), None) for ids in (a, b, c)]
    with torch.no_grad():
        list(decoder._prompts(again, 99))
    assert [request.reused for request in again] == [19, 0, 19]
    assert decoder.kept.bytes == 4 * BLOCK * size
    decoder.forget(None)
    assert list(decoder.kept.nodes) == []


def test_the_model_is_given_back_as_it_was() -> None:
    model = add_adapter(make_model("llama")).eval()
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    decoder, _ = pick(model)
    decoder.close()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not any("forward" in vars(module) for module in model.get_base_model().modules())
