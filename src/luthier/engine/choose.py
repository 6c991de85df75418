"""Which engine computes the loss of a model: the first that nothing speaks against, checked against the plain one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from luthier.choice import Choice
from luthier.data.render import Example
from luthier.engine import attention, compiled, recurrent
from luthier.engine.engines import Engine, FlatEngine, PlainEngine, install, needs_eager
from luthier.engine.instance import evaluating
from luthier.errors import ModelError, Problem

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 1e-2}
"""Largest relative difference of the two engines' losses on a few rows that still counts as rounding."""
CHECKED_ROWS = 3
CHECKED_TOKENS = 128
"""Of each: the plain engine gives logits for every token, and three rows of 5,000 took 1.6 minutes and 9 GB."""


def pick_engine(model: Any, examples: Sequence[Example], *, asked: str) -> Choice[Engine]:
    """The engine, set up on this model instance (adapter included), and why.

    Raises ModelError when `flat` is asked for and cannot be had.
    """
    if asked == "plain":
        return _plain(model, "the recipe asks for it")
    flat = FlatEngine(share=not has_dropout(model))
    sharing = "shared prefixes computed once" if flat.share else "shared prefixes computed again: dropout is above 0"
    sharing += f", {_attention(model)}"
    sharing += ", linear attention row by row" if recurrent.layers_of(model) else ""
    reason = next((why for decline in DECLINES if (why := decline(model)) is not None), None)
    if reason is None:
        checked = _check(model, flat, examples)
        if checked.value:
            return Choice(flat, f"no padding, {sharing}{_elementwise(model, flat)}; {checked.reason}")
        reason = checked.reason
    if asked == "flat":
        raise ModelError(Problem("train.engine: flat", reason, "set train.engine: auto or plain"))
    return _plain(model, f"padded batches of stock transformers: {reason}")


def has_dropout(model: Any) -> bool:
    """Whether anything is dropped in training, by the adapter or by the model itself."""
    adapter = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    # Some models drop without a module of their own; all name it in their config (attention_dropout, resid_pdrop, …).
    config = model.config.get_text_config().to_dict()
    return adapter or any("drop" in key and isinstance(value, float) and value > 0 for key, value in config.items())


def _attention(model: Any) -> str:
    _, width = attention.key_heads(model.config)
    return attention.named(model.device.type, model.dtype, width, plain=not needs_eager(model))


def _elementwise(model: Any, flat: FlatEngine) -> str:
    if flat.by_liger:
        return f", {' and '.join(flat.by_liger)} by Liger kernels"
    return f", {compiled.find().reason}" if model.device.type == "cpu" else ""


def _check(model: Any, engine: Engine, examples: Sequence[Example]) -> Choice[bool]:
    """Installs the engine; whether it gives the plain loss on the shortest rows, and what speaks for or against it."""
    few = [_beginning(e) for e in sorted(examples, key=lambda example: len(example.input_ids))[:CHECKED_ROWS]]
    plain = _loss(model, PlainEngine(), few)
    try:
        difference = abs(_loss(model, engine, few) - plain) / max(abs(plain), 1e-12)
    except Exception as error:  # whatever a model's own code cannot do with a flat batch, the plain engine can
        return Choice(False, f"it cannot take a flat batch ({str(error).partition(chr(10))[0]})")
    return Choice(difference <= TOLERANCE[model.dtype], f"the flat loss differs from the plain one by {difference:.1e}")


def _beginning(example: Example) -> Example:
    """A long row's first tokens, with a label on each: its own may all lie behind them."""
    if len(example.input_ids) <= CHECKED_TOKENS:
        return example
    ids = example.input_ids[:CHECKED_TOKENS]
    return Example(ids, ids, example.source)


def _loss(model: Any, engine: Engine, examples: Sequence[Example]) -> float:
    install(model, engine)
    with evaluating(model), torch.no_grad():
        return float(engine.loss_sum(model, examples))


def _plain(model: Any, reason: str) -> Choice[Engine]:
    engine = PlainEngine()
    install(model, engine)
    return Choice(engine, reason)


# Why a model cannot take the flat engine. Each answers None where it has nothing against it.


def _no_attention_interface(model: Any) -> str | None:
    # Where a state is carried along, transformers leaves the mark off, though attention itself goes through.
    if not getattr(model.get_base_model(), "_supports_attention_backend", False) and not recurrent.layers_of(model):
        return f"{model.get_base_model().__class__.__name__} does not go through transformers' attention interface"
    return None


def _other_layers(model: Any) -> str | None:
    kinds = list(getattr(model.config.get_text_config(), "layer_types", None) or ())
    known = {"full_attention", "sliding_attention"}
    if kinds.count(recurrent.KIND) == len(recurrent.layers_of(model)):
        known.add(recurrent.KIND)
    other = sorted(set(kinds) - known)
    return f"layers of kind {', '.join(other)} carry state from one row to the next" if other else None


DECLINES: tuple[Callable[[Any], str | None], ...] = (_other_layers, _no_attention_interface)
