"""The loops of `loops` with tensors: on a CPU, for processes of few threads, as each loop is one thread's work."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier import console
from luthier.choice import Choice
from luthier.engine.tiles import Tile

MOST_THREADS = 2
"""With more, torch's own passes, which are shared by all threads, take less time. The reason below says so, too."""


@functools.cache
def find() -> Choice[Any]:
    """The module `loops`, or None, and why. What it compiles is kept on disk, beside the module or for the user."""
    try:
        from luthier.engine import loops
    except Exception as error:  # numba is not there, does not take this numpy, or has no place to keep what it compiles
        return Choice(None, f"no loops compiled by numba ({str(error).partition(chr(10))[0]})")
    return Choice(loops, "loops compiled by numba where a process has one or two threads")


def fits(x: Tensor) -> bool:
    """Whether the functions below take tensors like this one, here and now."""
    found = (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and torch.get_num_threads() <= MOST_THREADS
        and find().value is not None
    )
    if found:
        _announce(find().value)
    return found


@functools.cache
def _announce(loops: Any) -> None:
    """Says that they are compiled, where they are taken for the first time on this machine, and nowhere else."""
    if not any(Path(loops.rms_norm.stats.cache_path).glob("loops.*.nbi")):
        console.say("Compiling loops, once on this machine …")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [..., H] normalised and multiplied with weight [H] (float32), and 1 / sqrt(mean(x^2) + eps) [..., 1]."""
    x = x.contiguous()
    y, r = torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
    find().value.rms_norm(_rows(x), _array(weight), _float32(eps), _rows(y), _flat(r))
    return y, r


def rms_norm_backward(g: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
    """The gradient of x from that of y, [..., H]."""
    g, x = g.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    find().value.rms_norm_backward(_rows(g), _rows(x), _array(weight), _flat(r), _rows(dx))
    return dx


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, N, H, D] turned by cos and sin [B, N, R]."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    y = torch.empty_like(x)
    find().value.rotate(_array(x.flatten(0, 1)), _rows(cos), _rows(sin), _array(y.flatten(0, 1)))
    return y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up, of any shape."""
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    find().value.swiglu(*map(_flat, (gate, up, y)))
    return y


def swiglu_backward(g: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    g, gate, up = g.contiguous(), gate.contiguous(), up.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    find().value.swiglu_backward(*map(_flat, (g, gate, up, d_gate, d_up)))
    return d_gate, d_up


def cross_entropy(logits: Tensor, targets: Tensor, *, gradient: bool) -> Tensor:
    """[M] float32, of logits [M, V], which become their gradient or are left as they are."""
    losses, room = torch.empty(len(logits)), torch.empty(logits.shape[1])
    find().value.cross_entropy(_array(logits), _array(targets), _array(losses), gradient, _array(room))
    return losses


def dots(a: Tensor, b: Tensor) -> Tensor:
    """sum(a b) over the last dimension, [..., 1] float32."""
    a, b = a.contiguous(), b.contiguous()
    sums = torch.empty(*a.shape[:-1], 1)
    find().value.dots(_rows(a), _rows(b), _flat(sums))
    return sums


def tops(scores: Tensor, tile: Tile) -> Tensor:
    """The largest score of each query that it sees, [B, L, 1] float32 of [B, L, S]."""
    top = torch.empty(*scores.shape[:2], 1)
    find().value.tops(_array(scores), *tile.seen, _array(top)[..., 0])
    return top


def weigh(scores: Tensor, tile: Tile) -> Tensor:
    """Scores [B, L, S] become exp(scores), 0 where hidden; their sums [B, L, 1] float32."""
    totals = torch.empty(*scores.shape[:2], 1)
    find().value.weigh(_array(scores), *tile.seen, _array(totals)[..., 0])
    return totals


def weigh_backward(scores: Tensor, gradient: Tensor, tile: Tile) -> None:
    """Scores become p = exp(scores), 0 where hidden, and gradient becomes p gradient, both [B, L, S]."""
    find().value.weigh_backward(_array(scores), _array(gradient), *tile.seen)


def _array(x: Tensor) -> Any:
    """A view of a tensor's memory; of bfloat16, of its bits."""
    x = x.detach()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def _rows(x: Tensor) -> Any:
    return _array(x).reshape(-1, x.shape[-1])


def _flat(x: Tensor) -> Any:
    return _array(x).reshape(-1)


def _float32(number: float) -> Any:
    import numpy as np

    return np.float32(number)
