"""A model known by its config alone: how large its parts are, and what a micro-batch takes beside them.

Layers of one kind are alike, so a step is counted on two short models and drawn out to the whole one: a straight line.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from luthier.data.render import Example
from luthier.engine import attention
from luthier.engine.engines import Engine, FlatEngine, PlainEngine, install
from luthier.model import adapters
from luthier.recipe.schema import AdapterSettings
from luthier.training import activations
from luthier.training.forecast.allocations import Allocations


@dataclass(frozen=True)
class Taken:
    """Bytes that a micro-batch takes beside weights, adapter, gradients and optimizer.

    kept: what the layers keep for the backward pass, with none of them recomputed.
    """

    activations: int
    logits: int
    kept: int

    @property
    def total(self) -> int:
        return self.activations + self.logits


class Sketch:
    """A config with an adapter, as `device` would compute it in `dtype`.

    Args:
        config: of transformers; a model with a vision tower is counted with it.
        engine: `flat` or `plain`; share: whether a flat batch computes shared prefixes once.
    """

    def __init__(
        self,
        config: Any,
        adapter: AdapterSettings,
        *,
        dtype: str,
        device: str,
        engine: str = "flat",
        share: bool = True,
        remote_code: bool = False,
    ) -> None:
        self.config, self.adapter, self.dtype, self.device = config, adapter, getattr(torch, dtype), device
        self._plain, self._share, self._remote = engine == "plain", share, remote_code
        self._short: dict[int, tuple[Any, Engine]] = {}
        self._counted: dict[Any, tuple[Any, tuple[int, int, int]]] = {}

    @cached_property
    def layers(self) -> int:
        return int(self.config.get_text_config().num_hidden_layers)

    @cached_property
    def engine(self) -> Engine:
        return self._of(min(self.layers, self.period))[1]

    @cached_property
    def period(self) -> int:
        """After how many layers their kinds repeat: 1 for most models, 6 for Gemma 3."""
        return period(self.config)

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of the frozen weights, bytes of the adapter in float32, and how many weights both of them have."""
        model = self._model(self.layers)
        own = {id(p): p for p in model.parameters()}.values()
        frozen = sum(p.numel() * p.element_size() for p in own if not p.requires_grad)
        learned = sum(p.numel() * p.element_size() for p in own if p.requires_grad)
        return frozen, learned, sum(p.numel() for p in own)

    def take(self, batch: Sequence[Example], recomputed: int = 0) -> Taken:
        """What this micro-batch takes at most, with the first `recomputed` layers run again in the backward pass."""
        short, long = self._lengths
        none = self._line(self._count(batch, short, 0), self._count(batch, long, 0))
        kept = none[self.layers][1]
        peak, _, logits = none[self.layers]
        if recomputed:
            inputs = self._line(self._count(batch, short, short), self._count(batch, long, long))
            each, alike = none[1][1] - none[0][1], inputs[1][1] - inputs[0][1]
            partly = peak - recomputed * (each - alike)
            peak, _, logits = inputs[self.layers] if recomputed >= self.layers else (partly, 0, logits)
        logits = min(round(logits), round(peak))
        return Taken(round(peak) - logits, logits, round(kept))

    def kept_per_token(self, batch: Sequence[Example]) -> activations.Activations:
        """The same in the terms that the choice of the micro-batch is made in."""
        short, long = self._lengths
        tokens = self.engine.cost(batch)
        none, inputs = (
            self._line(self._count(batch, short, n), self._count(batch, long, m)) for n, m in ((0, 0), (short, long))
        )
        return activations.Activations(
            layers=self.layers,
            kept=(none[1][1] - none[0][1]) / tokens,
            recomputed=(inputs[1][1] - inputs[0][1]) / tokens,
            outside=none[0][1] / tokens if self.engine.keeps_logits else 0.0,
        )

    @property
    def _lengths(self) -> tuple[int, int]:
        if self.layers < 2 * self.period:
            return max(1, self.layers // 2), self.layers
        return self.period, 2 * self.period

    def _line(self, at_short: tuple[int, ...], at_long: tuple[int, ...]) -> _Line:
        short, long = self._lengths
        return _Line(short, at_short, long, at_long)

    def _count(self, batch: Sequence[Example], layers: int, recomputed: int) -> tuple[int, int, int]:
        """Peak, kept after the forward, and logits at the peak, of a model of so many layers."""
        name = layers, recomputed, tuple(map(id, batch))
        if name not in self._counted:
            # With the rows themselves: the id of one that is gone may come again.
            self._counted[name] = tuple(batch), self._count_now(batch, layers, recomputed)
        return self._counted[name][1]

    def _count_now(self, batch: Sequence[Example], layers: int, recomputed: int) -> tuple[int, int, int]:
        model, engine = self._of(layers)
        known = [*model.parameters(), *model.buffers()]
        vocabulary = self.config.get_text_config().vocab_size
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
                known.append(parameter.grad)
        for layer in activations.decoder_layers(model):
            layer.gradient_checkpointing = False  # type: ignore[assignment]
        activations.recompute(model, recomputed)
        model.train()
        with self._attention(), Allocations(known, wide=vocabulary) as counted:
            loss = engine.loss_sum(model, batch)
            kept = counted.now
            loss.backward()  # type: ignore[no-untyped-call]
        return counted.peak, kept, counted.wide_at_peak

    def _of(self, layers: int) -> tuple[Any, Engine]:
        if layers not in self._short:
            engine: Engine = PlainEngine() if self._plain else FlatEngine(share=self._share)
            model = self._model(layers)
            with self._attention(), Allocations():
                install(model, engine)
            self._short[layers] = model, engine
        return self._short[layers]

    def _model(self, layers: int) -> Any:
        from transformers import AutoModelForCausalLM

        config = shortened(self.config, layers)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype, trust_remote_code=self._remote)
            return adapters.attach(model.requires_grad_(False), self.adapter)

    @contextmanager
    def _attention(self) -> Iterator[None]:
        kernels = attention.kernels_without_values(self.device, self.dtype, attention.key_heads(self.config)[1])
        token = attention.standing_in.set(kernels)
        try:
            yield
        finally:
            attention.standing_in.reset(token)


class _Line:
    """Figures of a model of n layers, from those of two short ones."""

    def __init__(self, short: int, at_short: tuple[int, ...], long: int, at_long: tuple[int, ...]) -> None:
        self._short, self._at_short, self._long, self._at_long = short, at_short, long, at_long

    def __getitem__(self, layers: int) -> tuple[float, ...]:
        if self._short == self._long:
            return tuple(float(a) * layers for a in self._at_short)  # of the one layer that there is
        share = (layers - self._short) / (self._long - self._short)
        return tuple(a + share * (b - a) for a, b in zip(self._at_short, self._at_long, strict=True))


def shortened(config: Any, layers: int) -> Any:
    """A copy of a config with its first `layers` layers."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    if shared := _sharing(text):  # the first of them share nothing
        text.num_kv_shared_layers = max(0, layers - (text.num_hidden_layers - shared))
    text.num_hidden_layers = layers
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(text, name, None):
            setattr(text, name, getattr(text, name)[:layers])
    return short


def period(config: Any) -> int:
    text = config.get_text_config()
    if _sharing(text):
        return int(text.num_hidden_layers)
    kinds = list(getattr(text, "layer_types", None) or [""] * text.num_hidden_layers)
    repeats = (n for n in range(1, len(kinds)) if all(kinds[i] == kinds[i % n] for i in range(len(kinds))))
    return next(repeats, max(1, len(kinds)))


def _sharing(text: Any) -> int:
    """How many of the last layers take keys and values of earlier ones (Gemma 4): they are of other kinds."""
    return getattr(text, "num_kv_shared_layers", None) or 0
