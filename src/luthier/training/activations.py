"""What the layers keep between forward and backward: how much it is, and two ways to keep less.

Recomputing a layer keeps its input alone and runs its forward again in the backward pass: a third more time for that
layer. Offloading copies what is kept to the host's memory and back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier.data.render import Example
from luthier.engine.engines import Engine
from luthier.engine.instance import in_mode

MEASURED_TOKENS = 32
SMALLEST_OFFLOADED = 1 << 20  # bytes; the copy of a smaller tensor costs more than its memory is worth


@dataclass(frozen=True)
class Activations:
    """Bytes that each token of a micro-batch takes between forward and backward."""

    layers: int
    kept: float
    """By one layer whose forward is not run again."""
    recomputed: float
    """By one layer that is: its input."""
    outside: float
    """By what lies outside the layers: logits in float32, their softmax and its gradient, if the engine keeps them."""

    def bytes_per_token(self, recomputed: int) -> float:
        """With so many layers recomputed."""
        return (self.layers - recomputed) * self.kept + recomputed * self.recomputed + self.outside

    def layers_to_recompute(self, tokens: int, room: float) -> int:
        """The fewest with which so many tokens take at most `room` bytes; all of them where that is not enough."""
        fitting = (count for count in range(self.layers) if tokens * self.bytes_per_token(count) <= room)
        return next(fitting, self.layers)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The language model's layers, first to last; none where the model's code cannot recompute them."""
    decoder = model.get_decoder()  # type: ignore[operator]
    return [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]


def measure(model: Any, engine: Engine, examples: Sequence[Example]) -> Activations:
    """Counts what one forward of a few tokens keeps in the layers, whatever model, adapter and engine they are."""
    ids = max((example.input_ids for example in examples), key=len)[:MEASURED_TOKENS]
    layers, config = decoder_layers(model), model.config.get_text_config()
    kept = _kept_bytes(model, layers or [model.get_decoder()], engine, Example(ids, ids, examples[0].source)) / len(ids)
    labelled = sum(example.num_labels for example in examples) / sum(len(example.input_ids) for example in examples)
    logits = 3 * 4 * config.vocab_size * labelled if engine.keeps_logits else 0.0
    if not layers:
        return Activations(layers=0, kept=0, recomputed=0, outside=logits + kept)
    inputs = config.hidden_size * model.dtype.itemsize
    return Activations(layers=len(layers), kept=kept / len(layers), recomputed=inputs, outside=logits)


def _kept_bytes(model: nn.Module, layers: Sequence[nn.Module], engine: Engine, row: Example) -> int:
    """Bytes of the tensors that autograd keeps for the layers' backward, without weights and each memory once."""
    weights = _addresses(model)
    kept: dict[int, int] = {}
    inside = [False]

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if inside[0] and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that holds its own output would hold itself, for ever

    def enter(*_: Any) -> None:
        inside[0] = True

    def leave(*_: Any) -> None:
        inside[0] = False

    hooks = [hook for x in layers for hook in (x.register_forward_pre_hook(enter), x.register_forward_hook(leave))]
    counting = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    try:
        with in_mode(model, training=True), torch.random.fork_rng(), counting:
            _loss = engine.loss_sum(model, [row])  # which holds what is kept until the end: no address is used twice
        return sum(kept.values())
    finally:
        for hook in hooks:
            hook.remove()


def _addresses(model: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}


def recompute(model: Any, count: int) -> None:
    """Lets this instance's first `count` layers be recomputed: by their turn the later ones have freed their memory."""
    if count == 0:
        return
    # transformers 5.23 has a new name for it; 5.20, the last that Python 3.10 gets, has the old one alone.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for layer in decoder_layers(model)[count:]:
        layer.gradient_checkpointing = False  # type: ignore[assignment]


@contextlib.contextmanager
def offloaded(model: nn.Module) -> Iterator[None]:
    """What a forward in here keeps for the backward pass waits in the host's memory, pinned where there is a GPU.

    `torch.autograd.graph.save_on_cpu` would copy the frozen weights too, and wait for each copy. Here the copies are
    only queued: they and the backward's copies run in the order of one stream.
    """
    weights = _addresses(model)

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        if tensor.nbytes < SMALLEST_OFFLOADED or tensor.untyped_storage().data_ptr() in weights:
            return tensor.device, tensor.detach()  # a node that holds its own output would hold itself, for ever
        host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return tensor.device, host.copy_(tensor, non_blocking=True)

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
