"""A model known by its config alone: how large its parts are, and what a micro-batch takes beside them.

Layers of one kind are alike, so a step is counted on a model with one layer of each kind, and on those with one more of
a kind: what that one adds is what each of its kind adds to the whole model.
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

KINDS = ("layer_types", "mlp_layer_types")  # what a config says of each of its layers


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
        self._made: dict[tuple[int, ...], tuple[Any, Engine]] = {}
        self._counted: dict[Any, tuple[Any, tuple[int, int, int]]] = {}

    @cached_property
    def layers(self) -> int:
        return int(self.config.get_text_config().num_hidden_layers)

    @cached_property
    def engine(self) -> Engine:
        return self._of(self._short)[1]

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        return sizes_of(self._model(range(self.layers)))

    def take(self, batch: Sequence[Example], recomputed: int = 0) -> Taken:
        """What this micro-batch takes at most, with the first `recomputed` layers run again in the backward pass."""
        none = self._drawn(batch)
        peak, logits = none.peak, none.logits
        if recomputed:
            every = self._drawn(batch, again=True)
            less = sum(none.layers[:recomputed]) - sum(every.layers[:recomputed])
            peak, logits = (every.peak, every.logits) if recomputed >= self.layers else (peak - less, 0)
        return Taken(peak - logits, logits, none.kept)

    def kept_per_token(self, batch: Sequence[Example]) -> activations.Activations:
        """The same in the terms that the choice of the micro-batch is made in."""
        tokens = self.engine.cost(batch)
        none, every = self._drawn(batch), self._drawn(batch, again=True)
        return activations.Activations(
            layers=self.layers,
            kept=sum(none.layers) / self.layers / tokens,
            recomputed=sum(every.layers) / self.layers / tokens,
            outside=(none.kept - sum(none.layers)) / tokens if self.engine.keeps_logits else 0.0,
        )

    @cached_property
    def _kinds(self) -> dict[Any, list[int]]:
        """Where in the model the layers of each kind are."""
        found: dict[Any, list[int]] = {}
        for place, kind in enumerate(kinds(self.config)):
            found.setdefault(kind, []).append(place)
        return found

    @property
    def _short(self) -> tuple[int, ...]:
        """The last layer of each kind: the backward pass begins with them, as in the whole model."""
        return tuple(sorted(places[-1] for places in self._kinds.values()))

    def _drawn(self, batch: Sequence[Example], *, again: bool = False) -> _Drawn:
        peak, kept, logits = short = self._count(batch, self._short, again)
        each = {}
        for kind, places in self._kinds.items():
            # Before all of its kind: what is kept there is there to the end.
            more = self._count(batch, sorted([places[0], *self._short]), again)
            peak += (len(places) - 1) * (more[0] - short[0])
            each[kind] = more[1] - short[1]
            kept += (len(places) - 1) * each[kind]
        return _Drawn(peak, kept, logits, [each[kind] for kind in kinds(self.config)])

    def _count(self, batch: Sequence[Example], layers: Sequence[int], again: bool) -> tuple[int, int, int]:
        """Peak, kept after the forward, and logits at the peak, of a model of these layers."""
        name = tuple(layers), again, tuple(map(id, batch))
        if name not in self._counted:
            # With the rows themselves: the id of one that is gone may come again.
            self._counted[name] = tuple(batch), self._count_now(batch, name[0], again)
        return self._counted[name][1]

    def _count_now(self, batch: Sequence[Example], layers: tuple[int, ...], again: bool) -> tuple[int, int, int]:
        model, engine = self._of(layers)
        known = [*model.parameters(), *model.buffers()]
        vocabulary = self.config.get_text_config().vocab_size
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
                known.append(parameter.grad)
        for layer in activations.decoder_layers(model):
            layer.gradient_checkpointing = False  # type: ignore[assignment]
        activations.recompute(model, len(layers) if again else 0)
        model.train()
        with self._attention(), Allocations(known, wide=vocabulary) as counted:
            loss = engine.loss_sum(model, batch)
            kept = counted.now
            loss.backward()  # type: ignore[no-untyped-call]
        return counted.peak, kept, counted.wide_at_peak

    def _of(self, layers: tuple[int, ...]) -> tuple[Any, Engine]:
        if layers not in self._made:
            engine: Engine = PlainEngine() if self._plain else FlatEngine(share=self._share)
            model = self._model(layers)
            with self._attention(), Allocations():
                install(model, engine)
            self._made[layers] = model, engine
        return self._made[layers]

    def _model(self, layers: Sequence[int]) -> Any:
        from transformers import AutoModelForCausalLM

        config = shortened(self.config, layers)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype, trust_remote_code=self._remote)
            return adapters.attach(model.requires_grad_(False), self.adapter)

    @contextmanager
    def _attention(self) -> Iterator[None]:
        kernel = attention.kernel_without_values(self.device, self.dtype, attention.key_heads(self.config)[1])
        token = attention.standing_in.set(kernel)
        try:
            yield
        finally:
            attention.standing_in.reset(token)


def sizes_of(model: Any) -> tuple[int, int, int]:
    """Bytes of the frozen weights, bytes of the adapter in float32, and how many weights both of them have."""
    own = {id(p): p for p in model.parameters()}.values()
    frozen = sum(p.numel() * p.element_size() for p in own if not p.requires_grad)
    learned = sum(p.numel() * p.element_size() for p in own if p.requires_grad)
    return frozen, learned, sum(p.numel() for p in own)


@dataclass(frozen=True)
class _Drawn:
    """Bytes of the whole model: at the peak, kept after the forward, of logits at the peak, and kept by each layer."""

    peak: int
    kept: int
    logits: int
    layers: list[int]


def shortened(config: Any, layers: Sequence[int]) -> Any:
    """A copy of a config with these of its layers."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    if shared := _sharing(text):
        text.num_kv_shared_layers = sum(place >= text.num_hidden_layers - shared for place in layers)
    sizes = {int(place): of_one for place, of_one in (text.to_dict().get("per_layer_config") or {}).items()}
    text.num_hidden_layers = len(layers)
    for name in KINDS:
        if of_each := getattr(text, name, None):
            setattr(text, name, [of_each[place] for place in layers])
    if sizes:
        text.per_layer_config = {new: sizes[place] for new, place in enumerate(layers) if place in sizes}
    return short


def kinds(config: Any) -> list[tuple[Any, ...]]:
    """Of each layer: its attention, its MLP, and whether it takes keys and values of an earlier one (Gemma 4)."""
    text = config.get_text_config()
    layers = text.num_hidden_layers
    of_each = (getattr(text, name, None) or [""] * layers for name in KINDS)
    return list(zip(*of_each, (place >= layers - _sharing(text) for place in range(layers)), strict=False))


def period(config: Any) -> int:
    """After how many layers their attention repeats: 1 for most models, 6 for Gemma 3, all for some of Gemma 4."""
    every = [(attention, sharing) for attention, _, sharing in kinds(config)]
    repeats = (n for n in range(1, len(every)) if all(every[i] == every[i % n] for i in range(len(every))))
    return next(repeats, max(1, len(every)))


def _sharing(text: Any) -> int:
    """How many of the last layers take keys and values of earlier ones."""
    return getattr(text, "num_kv_shared_layers", None) or 0
