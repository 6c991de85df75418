"""A model that is asked, measured or changed is left in the modes it came in, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model, make_tokenizer

from luthier.data.conversation import Message, Source
from luthier.data.render import Example, Renderer
from luthier.engine import lora, loss
from luthier.engine.choose import pick_engine
from luthier.engine.engines import PlainEngine
from luthier.engine.instance import evaluating
from luthier.evaluation.ending import end_probability
from luthier.evaluation.heldout import mean_loss
from luthier.inference.generate import answer_all
from luthier.training import activations
from luthier.training.guard import rows_without_loss

ROWS = [Example([5, 6, 2], [5, 6, 2], Source("rows.json", 1))]
RENDERER = Renderer(make_tokenizer())


def mixed() -> Any:
    """In training, but for its last norm."""
    model = add_adapter(make_model("llama")).train()
    model.get_base_model().model.norm.eval()
    return model


def modes(model: torch.nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_all_modules_are_asked_and_each_gets_its_mode_back() -> None:
    model = mixed()
    before = modes(model)
    assert before.count(False) == 1
    with evaluating(model):
        assert not any(modes(model))
    assert modes(model) == before
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert modes(model) == before


ASKING: dict[str, Callable[[Any], object]] = {
    "the choice of an engine": lambda model: pick_engine(model, ROWS, asked="auto"),
    "the groups of adapters": lora.fuse,
    "the check of the head": lambda model: loss.fuse(model.get_base_model()),
    "the memory a token takes": lambda model: activations.measure(model, PlainEngine(), ROWS),
    "the held-out loss": lambda model: mean_loss(model, PlainEngine(), ROWS, budget=8),
    "the probability of ending": lambda model: end_probability(model, RENDERER, ROWS),
    "an answer": lambda model: answer_all(model, RENDERER, [[Message("user", "Hi")]], max_new_tokens=1),
    "the rows without a loss": lambda model: rows_without_loss(model, PlainEngine(), ROWS),
}


@pytest.mark.parametrize("fails", [False, True], ids=["well", "with an error"])
@pytest.mark.parametrize("what", ASKING)
def test_whoever_asks_leaves_the_modes_as_they_were(what: str, fails: bool) -> None:
    model = mixed()
    before = modes(model)
    if not fails:
        ASKING[what](model)
    else:

        def out_of_memory(*_: Any) -> Any:
            raise torch.OutOfMemoryError

        model.get_output_embeddings().forward = out_of_memory
        with pytest.raises(torch.OutOfMemoryError):
            ASKING[what](model)
    assert modes(model) == before
