"""A rehearsal leaves the model as it found it."""

from __future__ import annotations

from tiny import add_adapter, make_model

from luthier.engine.engines import FlatEngine, install
from luthier.training.forecast import rates


def test_rehearsed_answers_leave_the_weights_where_they_were() -> None:
    """Copies beside a mapped file that stays in use would be held in memory through all steps."""
    model, engine = add_adapter(make_model("llama")), FlatEngine()
    install(model, engine)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    rates._answers(model, engine, rates._Clock(model, "cpu"), 1)
    assert [parameter.data_ptr() for parameter in model.parameters()] == before
