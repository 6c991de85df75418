"""The plain engine for a while, inside of another one."""

from __future__ import annotations

import pytest
import torch
from tiny import add_adapter, make_model

from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine.engines import FlatEngine, PlainEngine, as_stock, install
from luthier.engine.instance import is_replaced

ROWS = [Example([5, 6, 7, 8], [IGNORE, 6, 7, 8], Source("rows.json", 1))]


def test_what_another_engine_changed_is_put_back_as_it_was() -> None:
    """Also where what is done in between fails, or changes forwards itself."""
    model, engine = add_adapter(make_model("qwen3")), FlatEngine()
    install(model, engine)
    before = [module.forward for module in model.modules() if is_replaced(module)]
    expected = engine.loss_sum(model, ROWS)
    with pytest.raises(ZeroDivisionError), as_stock(model):
        assert not any(map(is_replaced, model.modules()))
        assert model.config._attn_implementation == "sdpa"
        torch.testing.assert_close(PlainEngine().loss_sum(model, ROWS), expected)
        install(model, FlatEngine())
        raise ZeroDivisionError
    after = [module.forward for module in model.modules() if is_replaced(module)]
    assert [id(forward) for forward in after] == [id(forward) for forward in before] != []
    assert torch.equal(engine.loss_sum(model, ROWS), expected)
