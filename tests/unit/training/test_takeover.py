"""A run that goes on asks for what it began with; what this machine cannot do is said in those words."""

from __future__ import annotations

import pytest

from luthier.choice import Choice
from luthier.errors import Problem, RecipeError, RunError
from luthier.recipe.schema import Recipe
from luthier.training import takeover

RECIPE = Recipe.model_validate({"model": "m", "data": "d", "output": "o", "train": {"save_steps": 7}})


def test_each_auto_takes_the_value_of_the_first_session() -> None:
    began = {
        "model.dtype": Choice("bfloat16", "measured"),
        "model.thinking": Choice(None, "the chat template has no thinking mode"),
        "train.micro_batch_tokens": Choice(300, "half of what is free"),
        "train.save_steps": Choice(7, "the recipe asks for it"),
        "tokens of an epoch": Choice("1 of 2", ""),
    }
    settled = takeover.settled(RECIPE, began)
    assert (settled.model.dtype, settled.model.device, settled.model.thinking) == ("bfloat16", "auto", None)
    assert (settled.train.micro_batch_tokens, settled.train.save_steps) == (300, 7)
    assert takeover.settled(RECIPE, {}) == RECIPE


def test_the_first_reasons_stay() -> None:
    now = {"model.dtype": Choice("bfloat16", "the recipe asks for it"), "tokens of an epoch": Choice("1 of 2", "")}
    began = {"model.dtype": Choice("bfloat16", "measured"), "train.engine": Choice("flat", "")}
    assert takeover.reasons(now, began) == {**now, "model.dtype": Choice("bfloat16", "measured")}


def test_what_cannot_be_taken_over_is_refused() -> None:
    error = RecipeError(Problem("model.device", "cuda cannot compute with torch 2.13.0: no GPU", "auto"))
    with pytest.raises(RunError) as caught, takeover.as_it_began({"model.device": Choice("cuda", "")}):
        raise error
    what = "cuda cannot compute with torch 2.13.0: no GPU; the run began so"
    fix = "go on on a machine like the first one, or begin again with --fresh"
    assert caught.value.problems == (Problem("model.device", what, fix),)
    with pytest.raises(RecipeError) as plain, takeover.as_it_began({}):
        raise error
    assert plain.value is error


def test_another_machine_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "cpu_name", lambda: "this CPU")
    now = takeover.pick_machine({})
    assert now.value.startswith("this CPU; torch 2.")
    assert takeover.pick_machine({"machine": now}) == now
    assert capsys.readouterr().err == ""
    began = Choice("that CPU; torch 2.12.0", "")
    assert takeover.pick_machine({"machine": began}) == began
    assert capsys.readouterr().err == (
        f"note: began on that CPU; torch 2.12.0, goes on on {now.value}: the result may differ in its last bits\n"
    )
