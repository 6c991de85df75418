"""Two ways from examples to the same loss: flat, and the plain twin it is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from luthier.data.batches import Filling
from luthier.data.render import IGNORE, Example
from luthier.engine import attention, liger, lora, loss, mlp, norm, recurrent, rotary
from luthier.engine.instance import is_replaced, restore
from luthier.engine.layout import FlatBatch, Tree, flatten, order

MULTIPLE = 16
"""Products of bfloat16 on a CPU compute 16 tokens at once: of 989 they take a quarter longer than of 992."""


class Engine(Protocol):
    name: str

    @property
    def keeps_logits(self) -> bool:
        """Whether the logits of a micro-batch live until its backward."""
        ...

    def prepare(self, model: Any) -> None:
        """Changes a stock model instance, adapter included, so that losses may be asked. Called by `install`."""
        ...

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """[len(examples)] float32: cross-entropy summed over the labels of each, 0 for one without."""
        ...

    def loss_sum(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """The sum of `losses`, a scalar. Normalising is the step's business."""
        return self.losses(model, examples).sum()

    def cost(self, examples: Sequence[Example]) -> int:
        """Tokens that the linear layers compute for these examples in one micro-batch."""
        ...

    def filling(self) -> Filling:
        """An empty micro-batch, to be filled with rows in the order of `in_order`."""
        ...

    def in_order(self, examples: Sequence[Example]) -> list[Example]:
        """Rows that cost least together side by side."""
        ...


class FlatEngine(Engine):
    """No padded token in any linear layer, shared prefixes computed once, logits only where there is a label.

    LoRA layers, norms and loss are computed by the routines of `lora`, `norm` and `loss` where those are the same; on a
    GPU, norms and gated MLPs by Liger's kernels where those are there.

    Args:
        share: whether tokens that rows of a micro-batch begin with are computed once in training. The gradient is the
            same at dropout 0; above it, one dropout mask would be drawn for all rows, so it is left off.
    """

    name = "flat"

    @property
    def keeps_logits(self) -> bool:
        return not self.fused_loss

    def __init__(self, *, share: bool = True) -> None:
        self.share = share
        self.fused_loss = False
        self.by_liger: list[str] = []
        self._adapters: list[list[Any]] = []  # whose factors are made before each forward
        self.multiple = 1  # of which the tokens of a micro-batch are one

    def prepare(self, model: Any) -> None:
        groups = lora.fuse(model)
        self._adapters = groups if model.device.type == "cuda" else []
        self.by_liger = liger.fuse(model)
        mlp.keep_less(model)
        norm.fuse(model)
        self.fused_loss = loss.fuse(_causal(model))
        recurrent.take_flat_rows(model)
        attention.register()
        model.set_attn_implementation(attention.NAME)
        on_cpu = model.device.type == "cpu"
        if on_cpu:
            rotary.fuse(model)
        self.multiple = MULTIPLE if on_cpu and model.dtype == torch.bfloat16 else 1

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        share, device = self.share or not model.training, next(model.parameters()).device
        batch = flatten(examples, share=share, multiple=self.multiple, device=device)
        each = self.token_losses(model, batch)
        total: Tensor = each.new_zeros(len(examples)).index_add(0, batch.example, each)
        return total

    def token_losses(self, model: nn.Module, batch: FlatBatch) -> Tensor:
        """[M] float32: the cross-entropy of each target."""
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "layout": batch.layout}
        with lora.prepared(self._adapters) if self._adapters else nullcontext():
            if self.fused_loss:
                each: Tensor = model(**inputs, predict_at=batch.predict_at, targets=batch.targets, use_cache=False)
                return each
            logits = model(**inputs, logits_to_keep=batch.predict_at, use_cache=False).logits[0]
        return cross_entropy(logits.float(), batch.targets, reduction="none")

    def cost(self, examples: Sequence[Example]) -> int:
        return _filled(self, examples)

    def filling(self) -> Tree:
        return Tree(share=self.share)

    def in_order(self, examples: Sequence[Example]) -> list[Example]:
        return [examples[place] for place in order(examples, share=self.share)]


class PlainEngine(Engine):
    """Stock transformers and PEFT: rows padded to the longest, a mask, logits everywhere. The reference."""

    name = "plain"
    keeps_logits = True

    def prepare(self, model: Any) -> None:
        """Nothing: it is what the model's classes say."""

    def losses(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        device = next(model.parameters()).device
        input_ids = _padded([e.input_ids for e in examples], 0).to(device)
        labels = _padded([e.labels for e in examples], IGNORE).to(device)
        mask = _padded([[1] * len(e.input_ids) for e in examples], 0).to(device)
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        each = cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="none"
        )
        return each.view(len(examples), -1).sum(1)

    def cost(self, examples: Sequence[Example]) -> int:
        return _filled(self, examples)

    def filling(self) -> Padded:
        return Padded()

    def in_order(self, examples: Sequence[Example]) -> list[Example]:
        return sorted(examples, key=lambda example: len(example.input_ids))


def _filled(engine: Engine, examples: Sequence[Example]) -> int:
    filling = engine.filling()
    for example in engine.in_order(examples):
        filling.add(example)
    return filling.tokens


class Padded:
    """Rows padded to the longest."""

    def __init__(self) -> None:
        self._rows = self._longest = 0

    @property
    def tokens(self) -> int:
        return self._rows * self._longest

    def added(self, example: Example) -> int:
        return (self._rows + 1) * max(self._longest, len(example.input_ids)) - self.tokens

    def add(self, example: Example) -> None:
        self._rows, self._longest = self._rows + 1, max(self._longest, len(example.input_ids))


def _padded(rows: list[list[int]], value: int) -> Tensor:
    """[B, T]: rows filled up on the right. [[5, 6], [7]], 0 → [[5, 6], [7, 0]]."""
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def install(model: Any, engine: Engine) -> None:
    """Makes this model instance compute as the engine needs it, and undoes what another one changed."""
    restore(model)
    model.set_attn_implementation(stock_attention(model))
    engine.prepare(model)


@contextmanager
def as_stock(model: Any) -> Iterator[None]:
    """The plain engine for a while; then what another one had changed is put back, and not proved again."""
    attention_before = model.config._attn_implementation
    replaced = [(module, module.forward) for module in model.modules() if is_replaced(module)]
    install(model, PlainEngine())
    try:
        yield
    finally:
        restore(model)
        for module, forward in replaced:
            module.forward = forward
        model.set_attn_implementation(attention_before)


def _causal(model: Any) -> Any:
    """The causal model itself, below an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def stock_attention(model: Any) -> str:
    """SDPA, or eager where the model's own is more than that (Gemma 2: soft-capped scores)."""
    return "eager" if needs_eager(model) else "sdpa"


def needs_eager(model: Any) -> bool:
    """Whether its attention does what SDPA cannot (soft-capped scores, sinks). transformers 5.20 does not say so."""
    softcapped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return bool(softcapped) or not model._supports_sdpa
