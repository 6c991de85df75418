"""Head and cross-entropy together, a few rows at a time: loss and gradient in one pass, no `[N, V]` kept.

The model's own forward would keep the logits of all labelled positions, their log-softmax and its gradient, each of
`[M, V]` in float32. Here the gradient of the hidden states is known as soon as the loss is, so a chunk of logits is
used in place and forgotten. The formula of soft-capping (Gemma) is `cap * tanh(logits / cap)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from luthier.engine import compiled
from luthier.engine.instance import evaluating, relative_error, replace_forward

ROWS, CHUNK = 256, 1 << 25
"""Logits computed at once: of so many rows, and at most so many (134 MB in float32). Fewer rows would read the head's
weight more often, more would leave the cache. Compiled, a row at a time passes through it: twice as many."""

TOLERANCE = 1e-3
"""Largest relative error of the head's logits against the model's own."""


@dataclass(frozen=True)
class Head:
    """From hidden states to logits: `cap * tanh(scale * (hidden weight^T + bias) / cap)`, without cap if it is None."""

    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Tensor, room: Tensor | None = None) -> Tensor:
        """[M, H] → [M, V], in the weight's dtype or, scaled or capped, in float32.

        `room` [M, V] in the weight's dtype is written over: it is returned, or what is returned is made of it.
        """
        hidden = hidden.to(self.weight.dtype)
        logits = torch.mm(hidden, self.weight.T, out=room)
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1.0:
            logits = logits.float() * self.scale
        return logits if self.cap is None else (logits.float() / self.cap).tanh_().mul_(self.cap)

    @property
    def plain(self) -> bool:
        """Whether logits are what the product gives."""
        return self.scale == 1.0 and self.cap is None

    def backward(self, logits: Tensor, gradient: Tensor, room: Tensor) -> Tensor:
        """The gradient of the hidden states from that of the logits, both [M, V]; overwrites them, and `room`."""
        if self.cap is not None:
            gradient *= logits.div_(self.cap).square_().neg_().add_(1)
        return room.copy_(gradient.mul_(self.scale) if self.scale != 1.0 else gradient) @ self.weight


def read_head(model: Any) -> Head | None:
    """The head of a causal model, or None if it is trained or does more than this module knows."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    if type(head) is not nn.Linear or head.weight.requires_grad:
        return None
    # The families name it in three ways: Granite divides, Cohere multiplies, Gemma caps.
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return Head(head.weight, head.bias, scale, getattr(config, "final_logit_softcapping", None))


def fuse(model: Any) -> bool:
    """Lets `model(…, predict_at, targets)` return the losses of this causal model; says whether it may.

    What the head makes of hidden states must be what the model itself makes of them, compared on two tokens. `model` is
    the causal model itself, below any adapter wrapper.
    """
    head = read_head(model)
    if head is None or not _same_logits(model, head):
        return False
    replace_forward(model, partial(_forward, model, head))
    return True


def _forward(
    model: Any,
    head: Head,
    own: Callable[..., Any],
    *args: Any,
    predict_at: Tensor | None = None,
    targets: Tensor | None = None,
    **inputs: Any,
) -> Any:
    """The model's own forward, or, with `targets` [M] for the tokens `predict_at` [M] of a flat row, their losses."""
    if predict_at is None or targets is None:
        return own(*args, **inputs)
    given = {name: value for name, value in inputs.items() if value is not None}  # PEFT passes on what nobody set
    hidden = model.get_decoder()(*args, **given).last_hidden_state[0]
    return losses(hidden[predict_at], targets, head)


def losses(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """[M] float32: cross-entropy of what the head makes of each of hidden [M, H] against targets [M]."""
    each: Tensor = _HeadLoss.apply(hidden, targets, head)  # type: ignore[no-untyped-call]
    return each


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
        each = torch.empty(len(hidden), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Not in float32: there torch's sums lose small terms, up to 1e-5 of the whole, in the plain twin as well.
        in_loops = head.plain and head.weight.dtype == torch.bfloat16 and compiled.fits(head.weight)
        rows = _rows_at_once(len(hidden), len(head.weight), times=1 + in_loops)
        # Made once: the system gives large pieces of memory back, and to get them anew costs more than to use them.
        room = torch.empty(rows, len(head.weight), dtype=head.weight.dtype, device=hidden.device)
        room32 = None if in_loops else torch.empty(rows, len(head.weight), device=hidden.device)
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            index = targets[chunk, None]
            used = room[: len(index)]
            logits = head(hidden[chunk], used)
            if room32 is None:
                each[chunk] = compiled.cross_entropy(logits, targets[chunk], gradient=gradient is not None)
                if gradient is not None:
                    gradient[chunk] = logits @ head.weight
                continue
            log_p = _log_softmax(logits, room32[: len(index)])
            each[chunk] = -log_p.gather(1, index)[:, 0]
            if gradient is not None:
                error = log_p.exp_().scatter_add_(1, index, -torch.ones_like(index, dtype=log_p.dtype))
                gradient[chunk] = head.backward(logits, error, used)
        ctx.save_for_backward(gradient)
        return each

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (hidden_gradient,) = ctx.saved_tensors
        return hidden_gradient * gradient[:, None].to(hidden_gradient.dtype), None, None


def _rows_at_once(rows: int, vocabulary: int, *, times: int = 1) -> int:
    """Parts of like size, in multiples of 16: 19 rows alone, behind 256, would take a quarter of the time of these."""
    rows = max(1, rows)
    most = max(1, min(times * ROWS, times * CHUNK // vocabulary, rows))
    return min(most, math.ceil(rows / math.ceil(rows / most) / 16) * 16)


def _log_softmax(logits: Tensor, out: Tensor) -> Tensor:
    """In float32, into `out`; on a CPU in place, so that less has to pass through its cache."""
    if out.device.type in ("cpu", "meta"):
        return torch.log_softmax(out.copy_(logits), dim=-1, out=out)
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32, out=out)


def _same_logits(model: Any, head: Head) -> bool:
    ids = torch.tensor([[0, 1]], device=model.device)
    with evaluating(model), torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0]
        found = head(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0])
    return relative_error(found, expected) <= TOLERANCE
