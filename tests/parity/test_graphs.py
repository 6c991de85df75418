"""What a CUDA graph reads and computes, computed without one: the same gradient, whatever fills the shape up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity.test_engines import BATCHES
from tiny import add_adapter, make_model
from unit.engine import test_flash

from luthier.data.render import Example
from luthier.engine import attention, flash
from luthier.engine.attention import dense
from luthier.engine.engines import FlatEngine, install
from luthier.engine.flash import in_flashes
from luthier.engine.graphs import Shape, _Inputs, rounded_up
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


def test_what_a_shape_takes() -> None:
    batch = Shape(tokens=3477, labels=1497, keys=5100, sequences=33, longest=447)
    room = batch.with_room()
    assert room == Shape(tokens=3584, labels=1920, keys=6656, sequences=50, longest=1024)
    # 107 tokens and their keys are left of it, and 1,449 keys that no query sees.
    assert room.fill_up(batch) == [(107, 107), (0, 1024), (0, 425)]
    assert room.takes(batch)
    assert room.takes(batch._replace(tokens=2800, longest=900, labels=1700))
    assert not room.takes(batch._replace(tokens=2700))  # to compute 3,584 in their place would waste too much
    for more in ({"tokens": 3600}, {"labels": 1930}, {"keys": 6700}, {"keys": 0}, {"longest": 1025}, {"sequences": 48}):
        assert not room.takes(batch._replace(**more))


@given(
    st.integers(1, 20_000), st.integers(0, 20_000), st.integers(1, 300), st.integers(1, 9000), st.integers(0, 40_000)
)
def test_what_is_captured_for_a_batch_takes_it(tokens: int, labels: int, count: int, longest: int, keys: int) -> None:
    batch = Shape(tokens, labels, keys and keys + tokens, count, longest)
    assert batch.with_room().takes(batch)


@given(st.integers(2800, 3584), st.integers(3000, 6656))
def test_what_is_taken_fills_a_shape_to_its_last_key(tokens: int, keys: int) -> None:
    """What fills up the tokens has keys of its own, for which there must be room too."""
    room = Shape(tokens=3477, labels=1497, keys=5100, sequences=33, longest=447).with_room()
    batch = Shape(tokens, 1497, keys, 33, 447)
    if room.takes(batch):
        more = room.fill_up(batch)
        assert tokens + sum(queries for queries, _ in more) == room.tokens
        assert keys + sum(own for _, own in more) == room.keys


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
    room = Shape.of(flatten(LARGER, share=share)).with_room()
    assert all(room.takes(Shape.of(flatten(each, share=share))) for each in (SMALLER, LARGER))
    inputs = _Inputs(room, model.device)
    for each in (SMALLER, LARGER, examples):  # what was there before leaves nothing behind
        inputs.load(flatten(each, share=share), 0.25)
    batch, weights = inputs.batch()
    loss = (engine.token_losses(model, batch) * weights).sum()
    loss.backward()
    torch.testing.assert_close(loss, expected)
    found = [p.grad for p in model.parameters() if p.requires_grad]
    assert relative_error(torch.cat([g.flatten() for g in found]), torch.cat([g.flatten() for g in gradients])) < 1e-5
