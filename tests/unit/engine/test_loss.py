"""Head and cross-entropy in one pass against the formula, and which heads it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model
from torch.nn.functional import cross_entropy, linear

from luthier.engine import compiled, loss
from luthier.engine.instance import restore
from luthier.engine.loss import Head, losses, read_head

pytestmark = pytest.mark.usefixtures("either_loops")


def tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(*shape, generator=generator) for shape in ((11, 16), (50, 16)))
    bias = torch.randn(50, generator=generator)
    targets = torch.randint(0, 50, (11,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets


@pytest.mark.parametrize("chunk", [50, 150, 10**6], ids=["a row", "three rows", "all rows"])
@pytest.mark.parametrize(
    ("scale", "cap", "biased"), [(1.0, None, False), (1.0, None, True), (0.25, None, False), (2.0, 3.0, True)]
)
def test_loss_and_gradient(
    scale: float, cap: float | None, biased: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK", chunk)
    hidden, weight, bias, targets = tensors()
    exact = hidden.double().requires_grad_()
    logits = linear(exact, weight.double(), bias.double() if biased else None) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    expected = cross_entropy(logits, targets, reduction="sum")
    (expected * 0.5).backward()

    hidden.requires_grad_()
    found = losses(hidden, targets, Head(weight, bias if biased else None, scale, cap)).sum()
    (found * 0.5).backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_room_for_logits_changes_no_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax is computed in place there, and the last rows take but a part of it."""
    monkeypatch.setattr(loss, "ROWS", 4)
    monkeypatch.setattr(compiled, "MOST_THREADS", 0)
    hidden, weight, _, targets = tensors(dtype)
    for chunk in (slice(0, 4), slice(8, 11)):
        log_p = torch.log_softmax((hidden[chunk] @ weight.T).float(), dim=-1)
        expected = -log_p.gather(1, targets[chunk, None])[:, 0]
        assert losses(hidden, targets, Head(weight, None))[chunk].tolist() == expected.tolist()


def test_no_labelled_token_at_all() -> None:
    hidden, weight, _, targets = tensors()
    assert losses(hidden[:0].requires_grad_(), targets[:0], Head(weight, None)).tolist() == []


def test_a_certain_prediction_costs_nothing_and_a_wrong_one_stays_finite() -> None:
    weight = torch.tensor([[200.0], [-200.0]])
    hidden = torch.ones(2, 1, requires_grad=True)
    found = losses(hidden, torch.tensor([0, 1]), Head(weight, None)).sum()
    assert found.item() == 400.0
    found.backward()
    assert hidden.grad.tolist() == [[0.0], [400.0]]


def test_without_gradient_none_is_computed() -> None:
    hidden, weight, bias, targets = tensors()
    with torch.no_grad():
        found = losses(hidden, targets, Head(weight, bias)).sum()
    assert not found.requires_grad
    assert found.item() == pytest.approx(cross_entropy(linear(hidden, weight, bias), targets, reduction="sum").item())


@pytest.mark.parametrize(
    ("family", "settings", "scale", "cap"),
    [
        ("llama", {}, 1.0, None),
        ("gemma3", {"final_logit_softcapping": 5.0}, 1.0, 5.0),
        ("granite", {"logits_scaling": 4.0}, 0.25, None),
        ("cohere", {"logit_scale": 0.5}, 0.5, None),
    ],
)
def test_the_loss_of_each_family(family: str, settings: dict[str, Any], scale: float, cap: float | None) -> None:
    model = make_model(family, **settings).requires_grad_(False)
    head = read_head(model)
    assert head is not None and (head.scale, head.cap) == (scale, cap)
    ids = torch.arange(3, 12)[None]
    at, targets = torch.tensor([2, 4, 7]), torch.tensor([5, 9, 20])
    expected = cross_entropy(model(input_ids=ids).logits[0, at], targets, reduction="none")
    assert loss.fuse(model)
    found = model(input_ids=ids, predict_at=at, targets=targets)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert model(input_ids=ids).logits.shape == (1, 9, 400)
    restore(model)
    assert "forward" not in vars(model)


def test_a_head_that_does_something_else_is_declined() -> None:
    model = make_model("granite", logits_scaling=4.0).requires_grad_(False)
    assert loss._same_logits(model, Head(model.lm_head.weight, None, 1 / 4))
    assert not loss._same_logits(model, Head(model.lm_head.weight, None, 1 / 3))


def test_a_head_that_is_trained_is_declined() -> None:
    model = add_adapter(make_model("llama"), targets=["q_proj", "lm_head"])
    assert not loss.fuse(model.get_base_model())


def test_parts_are_of_like_size() -> None:
    """In multiples of 16 rows, no more than ROWS, and no more than CHUNK logits."""
    asked = [(0, 400), (15, 400), (256, 400), (257, 400), (600, 400), (5000, 400), (300, 1 << 18), (5, 1 << 26)]
    assert [loss._rows_at_once(*each) for each in asked] == [1, 15, 256, 144, 208, 256, 112, 1]
