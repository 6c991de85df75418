"""Answers on a GPU, in fused decoder layers: `pytest tests/gpu`."""

from __future__ import annotations

import pytest
import torch
from tiny import add_adapter, make_model

from luthier.engine.instance import is_replaced
from luthier.inference.adapters import Adapters
from luthier.inference.decode import Decoder, OneByOne, Running
from luthier.inference.generate import greedy
from luthier.inference.pick import pick_decoder
from luthier.inference.together import Together


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_tokens_of_one_request_at_a_time(family: str, device: str) -> None:
    """Of the tuned and the base model, and on a GPU no weight moves: a CUDA graph may read it."""
    model = add_adapter(make_model(family)).eval().to(device)
    adapters, before = Adapters(model), [parameter.data_ptr() for parameter in model.parameters()]

    def answers(decoder: Decoder) -> list[list[int]]:
        requests = [Running([5, 6, 7, first], name) for first in (8, 9) for name in (None, model.active_adapter)]
        with torch.no_grad():
            greedy(decoder, requests, frozenset(), 12)
        return [request.ids for request in requests]

    expected = answers(OneByOne(adapters))
    together = pick_decoder(adapters, kept_bytes=0).value
    assert isinstance(together, Together)
    assert sum(map(is_replaced, adapters.causal.model.layers)) == len(adapters.causal.model.layers)
    assert answers(together) == expected
    assert device == "cpu" or [parameter.data_ptr() for parameter in model.parameters()] == before
