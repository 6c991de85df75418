from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model

from luthier.data.conversation import Message
from luthier.data.render import Renderer
from luthier.engine.engines import FlatEngine, install
from luthier.engine.instance import is_replaced
from luthier.inference.pick import pick_decoder
from luthier.report.events import Event
from luthier.training.sample import Sample

PROMPT = (Message("system", "You are a luthier."), Message("user", "你是谁？"))


@pytest.fixture
def model() -> Any:
    return add_adapter(make_model("llama"))


def ask(model: Any, tokenizer: Any, *, stop: bool = False, first: bool = True) -> list[Event]:
    """What a sample emits at step 7."""
    emitted: list[Event] = []
    install(model, FlatEngine())
    sample = Sample(Renderer(tokenizer), PROMPT, emitted.append, lambda: stop)
    sample.on_evaluate(None, SimpleNamespace(is_world_process_zero=first, global_step=7), None, model=model)
    return emitted


def test_the_answer_and_what_it_took(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.training.sample.MAX_NEW_TOKENS", 5)
    [event] = ask(model, tokenizer)
    assert event["event"] == "sample"
    assert (event["step"], event["prompt"], event["tokens"]) == (7, "你是谁？", 5)
    assert event["seconds"] > 0
    assert ask(model, tokenizer)[0] | {"seconds": 0} == event | {"seconds": 0}


def test_the_fast_way_is_proved_once_and_sees_new_weights(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.training.sample.MAX_NEW_TOKENS", 5)
    proved: list[int] = []

    def pick(*args: Any, **options: Any) -> Any:
        proved.append(1)
        return pick_decoder(*args, **options)

    monkeypatch.setattr("luthier.training.sample.pick_decoder", pick)
    emitted: list[Event] = []
    install(model, FlatEngine())
    sample = Sample(Renderer(tokenizer), PROMPT, emitted.append, lambda: False)
    state = SimpleNamespace(is_world_process_zero=True, global_step=7)
    for _ in range(2):
        sample.on_evaluate(None, state, None, model=model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(-2)
    assert len(proved) == 1
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.div_(-2)
    assert ask(model, tokenizer)[0]["answer"] == emitted[1]["answer"] != emitted[0]["answer"]


def test_model_and_random_numbers_are_left_as_they_were(model: Any, tokenizer: Any) -> None:
    install(model, FlatEngine())
    before = [name for name, module in model.named_modules() if is_replaced(module)]
    model.train()
    state, attention = torch.random.get_rng_state(), model.config._attn_implementation
    ask(model, tokenizer)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [name for name, module in model.named_modules() if is_replaced(module)] == before != []
    assert model.config._attn_implementation == attention == "luthier_flat"
    assert all(module.training for module in model.modules())


def test_a_stop_gives_the_answer_up(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards: list[int] = []
    model.get_base_model().model.register_forward_hook(lambda *_: forwards.append(1))
    monkeypatch.setattr("luthier.training.sample.MAX_NEW_TOKENS", 50)
    assert ask(model, tokenizer, stop=True) == []
    looked_at_first = len(forwards)
    forwards.clear()
    assert len(ask(model, tokenizer)) == 1
    assert len(forwards) - looked_at_first >= 40  # one token's worth against up to 50


def test_only_the_first_process_asks(model: Any, tokenizer: Any) -> None:
    assert ask(model, tokenizer, first=False) == []
