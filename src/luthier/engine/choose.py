"""Which engine computes the loss of a model: the first that nothing speaks against, checked against the plain one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from luthier.choice import Choice
from luthier.data.render import Example
from luthier.engine.engines import Engine, FlatEngine, PlainEngine, set_attention
from luthier.errors import ModelError, Problem

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 1e-2}
"""Largest relative difference of the two engines' losses on a few rows that still counts as rounding."""
CHECKED_ROWS = 3


def pick_engine(model: Any, examples: Sequence[Example], *, asked: str, dropout: float) -> Choice[Engine]:
    """The engine, set up on this model instance, and why.

    Raises ModelError when `flat` is asked for and cannot be had.
    """
    if asked == "plain":
        return _chosen(model, PlainEngine(), "the recipe asks for it")
    flat = FlatEngine(share=dropout == 0)
    sharing = "shared prefixes computed once" if flat.share else "shared prefixes computed again: dropout is above 0"
    reason = next((why for decline in DECLINES if (why := decline(model)) is not None), None)
    if reason is None:
        difference = loss_difference(model, flat, examples)
        if difference <= TOLERANCE[model.dtype]:
            return _chosen(
                model, flat, f"no padding, {sharing}; its loss differs from the plain one by {difference:.1e}"
            )
        reason = f"the flat loss differs from the plain one by {difference:.1e}"
    if asked == "flat":
        raise ModelError(Problem("train.engine: flat", reason, "set train.engine: auto or plain"))
    return _chosen(model, PlainEngine(), f"padded batches of stock transformers: {reason}")


def loss_difference(model: Any, engine: Engine, examples: Sequence[Example]) -> float:
    """Relative difference of an engine's loss from the plain one, on the shortest rows that have labels."""
    few = sorted(examples, key=lambda example: len(example.input_ids))[:CHECKED_ROWS]
    losses = []
    was_training = model.training
    model.eval()
    for each in (PlainEngine(), engine):
        set_attention(model, each)
        with torch.no_grad():
            losses.append(float(each.loss_sum(model, few)))
    model.train(was_training)
    return abs(losses[1] - losses[0]) / max(abs(losses[0]), 1e-12)


def _chosen(model: Any, engine: Engine, reason: str) -> Choice[Engine]:
    set_attention(model, engine)
    return Choice(engine, reason)


# Why a model cannot take the flat engine. Each answers None where it has nothing against it.


def _no_attention_interface(model: Any) -> str | None:
    if not getattr(model.get_base_model(), "_supports_attention_backend", False):
        return f"{model.get_base_model().__class__.__name__} does not go through transformers' attention interface"
    return None


def _other_layers(model: Any) -> str | None:
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    other = sorted(kinds - {"full_attention", "sliding_attention"})
    return f"layers of kind {', '.join(other)} carry state from one row to the next" if other else None


def _soft_capped(model: Any) -> str | None:
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return "its attention scores are soft-capped, which SDPA cannot do" if capped else None


DECLINES: tuple[Callable[[Any], str | None], ...] = (_no_attention_interface, _other_layers, _soft_capped)
