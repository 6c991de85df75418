"""What a CUDA graph reads and computes, computed without one: the same gradient, whatever fills the shape up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from parity.test_engines import BATCHES
from tiny import add_adapter, make_model
from unit.engine import test_flash

from luthier.data.render import Example
from luthier.engine import attention, flash
from luthier.engine.attention import dense
from luthier.engine.engines import FlatEngine, install
from luthier.engine.flash import in_flashes
from luthier.engine.graphs import Shape, _Inputs, rounded_up, shape_of
from luthier.engine.instance import relative_error
from luthier.engine.layout import flatten

LARGER = BATCHES["three levels"][0]
SMALLER = LARGER[1:]


@pytest.fixture(params=[dense, in_flashes], ids=["dense", "flash"])
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flash, "_forward", test_flash.forward)
    monkeypatch.setattr(flash, "_backward", test_flash.backward)
    token = attention.standing_in.set(request.param)
    yield
    attention.standing_in.reset(token)


def test_sizes_are_rounded_up() -> None:
    assert [rounded_up(count) for count in (0, 1, 128, 129, 3477, 4097, 5000)] == [128, 128, 128, 256, 3584, 4608, 5120]
    assert all(rounded_up(count) <= count * 1.125 + 128 for count in range(1, 20000))


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("examples", [SMALLER, LARGER], ids=["smaller", "larger"])
def test_a_shape_gives_the_loss_and_gradient_of_what_fills_it(
    family: str, share: bool, examples: list[Example]
) -> None:
    """Both batches, one after the other, in one shape that takes either."""
    model, engine = add_adapter(make_model(family)).train(), FlatEngine(share=share)
    install(model, engine)
    expected = 0.25 * engine.loss_sum(model, examples)
    expected.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    inputs = _Inputs(_common_shape(share), model.device)
    for each in (SMALLER, LARGER, examples):  # what was there before leaves nothing behind
        inputs.load(flatten(each, share=share), 0.25)
    batch, weights = inputs.batch()
    loss = (engine.token_losses(model, batch) * weights).sum()
    loss.backward()
    torch.testing.assert_close(loss, expected)
    found = [p.grad for p in model.parameters() if p.requires_grad]
    assert relative_error(torch.cat([g.flatten() for g in found]), torch.cat([g.flatten() for g in gradients])) < 1e-5


def _common_shape(share: bool) -> Shape:
    shapes = [shape_of(flatten(examples, share=share)) for examples in (SMALLER, LARGER)]
    return Shape(*map(max, zip(*shapes, strict=True)))._replace(longest=1024)
