"""Which engine a model gets, and the reason that the user reads."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model

from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine import attention, choose
from luthier.engine.choose import has_dropout, pick_engine
from luthier.engine.engines import FlatEngine, PlainEngine, install
from luthier.engine.instance import is_replaced
from luthier.errors import ModelError, Problem

ROWS = [
    Example([5, 6, 7, 8, number, 9], [IGNORE, IGNORE, IGNORE, IGNORE, number, 9], Source("rows.json", number))
    for number in range(10, 16)
]


def test_a_llama_takes_the_flat_engine() -> None:
    model = add_adapter(make_model("llama"))
    model.train()
    choice = pick_engine(model, ROWS, asked="auto")
    assert isinstance(choice.value, FlatEngine) and choice.value.share
    assert re.fullmatch(
        r"no padding, shared prefixes computed once, attention in blocks, "
        r"loops compiled by numba where a process has one or two threads; "
        r"the flat loss differs from the plain one by \d\.\de[-+]\d\d",
        choice.reason,
    )
    assert model.config._attn_implementation == attention.NAME
    assert model.training


def test_it_is_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing runs the model, and compiles kernels on a GPU."""
    installed: list[str] = []

    def noted(model: Any, engine: Any) -> None:
        installed.append(engine.name)
        install(model, engine)

    monkeypatch.setattr(choose, "install", noted)
    model = add_adapter(make_model("llama"))
    pick_engine(model, ROWS, asked="auto")
    assert installed == ["plain", "flat"]
    assert is_replaced(model.get_base_model())


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("gemma2", "attention in blocks"),
        ("gpt_oss", "attention in blocks"),
        ("qwen3_5", "attention in blocks, linear attention row by row"),
    ],
)
def test_what_is_more_than_a_llama_takes_it_too(family: str, how: str) -> None:
    choice = pick_engine(add_adapter(make_model(family)), ROWS, asked="auto")
    assert isinstance(choice.value, FlatEngine)
    assert choice.reason.startswith(
        f"no padding, shared prefixes computed once, {how}, "
        f"loops compiled by numba where a process has one or two threads; the flat loss differs"
    )


def test_what_the_flat_engine_declines_trains_plainly() -> None:
    """LFM2's convolutions look at the tokens before, whatever row they belong to."""
    model = add_adapter(make_model("lfm2"))
    choice = pick_engine(model, ROWS, asked="auto")
    reason = "layers of kind conv carry state from one row to the next"
    assert isinstance(choice.value, PlainEngine)
    assert choice.reason == f"padded batches of stock transformers: {reason}"
    assert model.config._attn_implementation == "sdpa"
    loss = choice.value.loss_sum(model, ROWS)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and p.grad.norm() > 0 for n, p in model.named_parameters() if "lora_A" in n)

    with pytest.raises(ModelError) as raised:
        pick_engine(model, ROWS, asked="flat")
    assert raised.value.problems == (Problem("train.engine: flat", reason, "set train.engine: auto or plain"),)


@pytest.mark.parametrize(("family", "stock"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager")])
def test_plain_when_asked(family: str, stock: str) -> None:
    """Stock attention is SDPA, or eager where scores are soft-capped or there are sinks."""
    model = add_adapter(make_model(family))
    choice = pick_engine(model, ROWS, asked="plain")
    assert isinstance(choice.value, PlainEngine)
    assert choice.reason == "the recipe asks for it"
    assert model.config._attn_implementation == stock


def test_a_model_outside_the_attention_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    model = add_adapter(make_model("llama"))
    monkeypatch.setattr(type(model.get_base_model()), "_supports_attention_backend", False)
    assert pick_engine(model, ROWS, asked="auto").reason == (
        "padded batches of stock transformers: LlamaForCausalLM does not go through transformers' attention interface"
    )


def test_a_model_that_does_not_hand_the_layout_down() -> None:
    """Nemotron's decoder keeps a forward's extra arguments to itself."""
    model = add_adapter(make_model("nemotron"))
    choice = pick_engine(model, ROWS, asked="auto")
    assert isinstance(choice.value, PlainEngine)
    assert choice.reason == (
        "padded batches of stock transformers: it cannot take a flat batch "
        "(flat_attention() missing 1 required keyword-only argument: 'layout')"
    )
    assert model.config._attn_implementation == "sdpa"


def test_another_loss_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FlatEngine.losses
    monkeypatch.setattr(FlatEngine, "losses", lambda self, model, rows: right(self, model, rows) * 1.01)
    model = add_adapter(make_model("llama"))
    reason = "the flat loss differs from the plain one by 1.0e-02"
    assert pick_engine(model, ROWS, asked="auto").reason == f"padded batches of stock transformers: {reason}"
    with pytest.raises(ModelError) as raised:
        pick_engine(model, ROWS, asked="flat")
    assert raised.value.problems == (Problem("train.engine: flat", reason, "set train.engine: auto or plain"),)


@pytest.mark.parametrize(("dropout", "share"), [(0.0, True), (0.1, False)])
def test_a_prefix_is_shared_only_without_dropout(dropout: float, share: bool) -> None:
    """Also the model's own: OPT's layers drop by default."""
    for model in (
        add_adapter(make_model("llama"), dropout=dropout),
        add_adapter(make_model("opt", dropout=dropout)),
        add_adapter(make_model("llama", attention_dropout=dropout)),
    ):
        assert has_dropout(model) is not share
        choice = pick_engine(model, ROWS, asked="auto")
        assert isinstance(choice.value, FlatEngine) and choice.value.share is share
        assert choice.reason.startswith(
            "no padding, shared prefixes computed "
            + ("once" if share else "again: dropout is above 0")
            + ", attention in blocks, loops compiled by numba where a process has one or two threads; "
        )


def test_the_loss_is_checked_on_the_shortest_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def loss(model: Any, engine: Any, examples: Any) -> float:
        seen.append([len(example.input_ids) for example in examples])
        return 1.0

    monkeypatch.setattr(choose, "_loss", loss)
    rows = [Example([3] * length, [3] * length, Source("rows.json", length)) for length in (9, 4, 7, 5, 30)]
    pick_engine(add_adapter(make_model("llama")), rows, asked="auto")
    assert seen == [[4, 5, 7], [4, 5, 7]]


def test_the_loss_of_long_rows_is_checked_on_their_beginnings() -> None:
    """All their labels may lie behind, so that each token there has one."""
    rows = [Example(list(range(3, 303)), [IGNORE] * 299 + [5], Source("rows.json", 1))] * 4
    model = add_adapter(make_model("llama"))
    seen: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    assert isinstance(pick_engine(model, rows, asked="auto").value, FlatEngine)
    hook.remove()
    assert seen == [(3, 128), (1, 2), (1, 127)]  # between the two a probe of the head
