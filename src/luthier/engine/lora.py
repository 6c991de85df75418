"""LoRA layers that read the same input, forward and backward in one go.

For the layers W1, W2, … of a group (q, k and v; gate and up; or one alone), each with an adapter A, B and its scale
s = alpha / rank, and x of shape [N, in]:

    t  = x [s1 A1; s2 A2; …]^T                 one product for all of them          [N, sum of ranks]
    yi = ti Bi^T + x Wi^T + bi                 added in this order                  [N, out]

    u  = [g1 B1, g2 B2, …]                     gi: the gradient of yi               [N, sum of ranks]
    dAi = si ui^T x,   dBi = gi^T ti           never a gradient of W's size
    dx = g1 W1 + g2 W2 + … + u [s1 A1; …]      added in place

Only x and t are kept for the backward. Products run in the dtype of W, over float32 masters of A and B. In half
precision what a young adapter adds is less than half the last bit of x Wi^T: added to that after it was rounded, as
PEFT does, all of it would be lost. So x Wi^T is added to it, before anything is rounded. With dropout each layer drops
other values of x, so each has its own product in place of the common one. LoRA: arXiv 2106.09685; PEFT's own layers
are the plain twin.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from luthier.engine import compiled
from luthier.engine.instance import evaluating, replace_forward


def fuse(model: Any) -> list[list[Any]]:
    """Gives the plain LoRA layers of this model instance the fused forward; returns them, those of one input together.

    A layer that is more than `y + s B A x` (DoRA, a bias in the adapter, a quantized base) stays PEFT's.
    """
    groups = _sharing_an_input(model)
    for layers in groups:
        group = _Group(layers)
        for index, layer in enumerate(layers):
            replace_forward(layer, partial(group.forward, index))
    return groups


def _sharing_an_input(model: Any) -> list[list[Any]]:
    """The plain LoRA layers as a forward meets them, those that follow each other with one input together."""
    from peft.tuners.lora import LoraLayer

    met: list[tuple[Any, Tensor]] = []  # it holds the inputs: the id of a freed tensor may come again

    def meet(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        if all(layer is not other for other, _ in met):
            met.append((layer, inputs[0]))

    hooks = [m.register_forward_pre_hook(meet) for m in model.modules() if isinstance(m, LoraLayer) and _is_plain(m)]
    try:
        with evaluating(model), torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [[layer for layer, _ in run] for _, run in itertools.groupby(met, key=lambda pair: id(pair[1]))]


def _is_plain(layer: Any) -> bool:
    from peft.tuners import lora

    name = layer.active_adapters[0]
    return (
        type(layer) is lora.Linear
        and type(layer.base_layer) is nn.Linear
        and not layer.base_layer.weight.requires_grad
        and list(layer.lora_A) == [name]
        and not layer.lora_variant
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


class _Group:
    """Layers that are called one after another with the same input: the first call computes them all."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def forward(self, index: int, plain: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The forward of layer `index`. `plain` is PEFT's own, for a layer whose adapter is off or merged."""
        if self.layers[index].disable_adapters or self.layers[index].merged or args or kwargs:
            return plain(x, *args, **kwargs)
        if x is not self._input or index not in self._outputs:
            self._input, self._outputs = x, dict(enumerate(lora_linears(x, self.layers)))
        output = self._outputs.pop(index)
        if not self._outputs:
            self._input = None  # or it would outlive its step
        return output


class _Frozen(NamedTuple):
    """What a layer does not learn: weight [out, in], bias [out], and the adapter's scale."""

    weight: Tensor
    bias: Tensor | None
    scale: float


class _Factors(NamedTuple):
    """The adapters of a group in the dtype of its products."""

    down: Tensor
    """[sum of ranks, in]: s1 A1, s2 A2, … one below the other."""
    up: list[Tensor]
    """B1, B2, …, each [out, rank]."""


_prepared: ContextVar[dict[Any, _Factors] | None] = ContextVar("_prepared", default=None)


@contextmanager
def prepared(groups: list[list[Any]]) -> Iterator[None]:
    """Within it the factors of these groups are at hand: a GPU makes all at once in the time of those of one."""
    token = _prepared.set(_all_factors(groups))
    try:
        yield
    finally:
        _prepared.reset(token)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _all_factors(groups: list[list[Any]]) -> dict[Any, _Factors]:
    """By the first layer of each group."""
    frozen, learned, _ = zip(*(_parts(layer) for group in groups for layer in group), strict=True)
    down, up = zip(*learned, strict=True)
    dtype = frozen[0].weight.dtype
    scaled = torch._foreach_mul(down, [layer.scale for layer in frozen])
    downs, ups = iter(_in_dtype(scaled, dtype)), iter(_in_dtype(up, dtype))
    found = {}
    for group in groups:
        parts = [next(downs) for _ in group]
        ranks, width = sum(map(len, parts)), parts[0].shape[1]
        one_below_the_other = parts[0].as_strided((ranks, width), (width, 1))  # as they lie already
        found[group[0]] = _Factors(one_below_the_other, [next(ups) for _ in group])
    return found


def _in_dtype(matrices: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies in one piece of memory."""
    memory = torch.cat([matrix.flatten() for matrix in matrices]).to(dtype)
    pieces = torch.split(memory, [matrix.numel() for matrix in matrices])
    return [piece.view_as(matrix) for piece, matrix in zip(pieces, matrices, strict=True)]


def _factors(frozen: list[_Frozen], learned: Sequence[Tensor]) -> _Factors:
    """Of one group, with A1, B1, A2, B2, …"""
    dtype = frozen[0].weight.dtype
    down = torch.cat([a * layer.scale for a, layer in zip(learned[::2], frozen, strict=True)])
    return _Factors(down.to(dtype), [b.to(dtype) for b in learned[1::2]])


def lora_linears(x: Tensor, layers: list[Any]) -> tuple[Tensor, ...]:
    """What each LoRA layer makes of x [..., in]: [..., out], in the dtype of the layers' weights."""
    frozen, learned, dropouts = zip(*map(_parts, layers), strict=True)
    x = x.to(frozen[0].weight.dtype)
    if any(map(_drops, layers)):
        return tuple(
            _apply(x, dropout(x), [kept], None, *ab)[0]
            for dropout, kept, ab in zip(dropouts, frozen, learned, strict=True)
        )
    return _apply(x, None, list(frozen), _at_hand(layers), *itertools.chain(*learned))


def _at_hand(layers: list[Any]) -> _Factors | None:
    return (_prepared.get() or {}).get(layers[0])


def _parts(layer: Any) -> tuple[_Frozen, tuple[Tensor, Tensor], nn.Module]:
    """What a LoRA layer does not learn, its A and B, and its dropout."""
    name, base = layer.active_adapters[0], layer.base_layer
    learned = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _Frozen(base.weight, base.bias, layer.scaling[name]), learned, layer.lora_dropout[name]


def _drops(layer: Any) -> bool:
    dropout = layer.lora_dropout[layer.active_adapters[0]]
    return layer.training and isinstance(dropout, nn.Dropout) and dropout.p > 0


def _apply(
    x: Tensor, dropped: Tensor | None, frozen: list[_Frozen], factors: _Factors | None, *learned: Tensor
) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] = _LoraLinears.apply(x, dropped, frozen, factors, *learned)  # type: ignore[no-untyped-call]
    return outputs


class _LoraLinears(torch.autograd.Function):
    """`forward(x, dropped, frozen, factors, A1, B1, A2, B2, …)`, with the factors of these masters where they are made.

    `dropped` goes into the adapter in place of x, unless None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, frozen: list[_Frozen], factors: _Factors | None, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        rows, (down, up) = _rows(x), factors or _factors(frozen, learned)
        t = (rows if dropped is None else _rows(dropped)) @ down.T
        outputs = []
        for layer, t_i, b in zip(frozen, torch.split(t, [b.shape[1] for b in up], dim=1), up, strict=True):
            y = linear(t_i, b).addmm_(rows, layer.weight.T)
            if layer.bias is not None:
                y += layer.bias
            outputs.append(y.view(*x.shape[:-1], -1))
        ctx.frozen, ctx.factors = frozen, factors
        # Without dropout x is all that is kept: with it x has no use in the backward, and `dropped` has.
        ctx.save_for_backward(x if dropped is None else dropped, t, *learned)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, t, *learned = ctx.saved_tensors
        down, up = ctx.factors or _factors(ctx.frozen, learned)
        rows, ranks = _rows(inputs), [b.shape[1] for b in up]
        needs_x, needs_dropped = ctx.needs_input_grad[:2]
        dx: Tensor | None = None
        d_up: list[Tensor | None] = []
        u = torch.empty_like(t)
        for layer, b, t_i, u_i, g in zip(
            ctx.frozen, up, *(torch.split(x, ranks, 1) for x in (t, u)), gradients, strict=True
        ):
            if g is None:  # nothing used this output
                u_i.zero_()
                d_up.append(None)
                continue
            g = _rows(g)
            torch.mm(g, _with_long_rows(b.T).T, out=u_i)
            d_up.append(_over_tokens(g, t_i, learned[0].dtype))
            if needs_x:
                dx = g @ layer.weight if dx is None else dx.addmm_(g, layer.weight)
        d_down = torch.split(_over_tokens(u, rows, learned[0].dtype), ranks)
        torch._foreach_mul_(d_down, [layer.scale for layer in ctx.frozen])
        d_dropped = (u @ down).view_as(inputs) if needs_dropped else None
        if dx is not None and not needs_dropped:
            dx.addmm_(u, down)
        return (
            None if dx is None else dx.view_as(inputs),
            d_dropped,
            None,
            None,
            *itertools.chain(*zip(d_down, d_up, strict=True)),
        )


def _with_long_rows(narrow: Tensor) -> Tensor:
    """[rank, many]: on a CPU a copy, which multiplies up to twice as fast as the transposed view of narrow rows."""
    return narrow if narrow.is_cuda else narrow.contiguous()


def _over_tokens(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left^T right for left [N, a] and right [N, b]: the sum over all tokens, [a, b]."""
    if left.is_cuda and left.dtype != dtype and torch.version.hip is None:
        return torch.mm(left.T, right, out_dtype=dtype)
    if left.shape[1] < right.shape[1]:
        return (_with_long_rows(left.T) @ right).to(dtype)
    return (_with_long_rows(right.T) @ left).T.to(dtype)


def gated_linear(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor, layer: Any) -> Tensor:
    """What a LoRA layer makes of act(gate) * up, which is computed again in the backward pass in place of kept."""
    frozen, learned, _ = _parts(layer)
    if layer.disable_adapters or layer.merged or _drops(layer) or gate.dtype != frozen.weight.dtype:
        plain: Tensor = layer(act(gate) * up)
        return plain
    output: Tensor = _GatedLinear.apply(act, gate, up, [frozen], _at_hand([layer]), *learned)  # type: ignore[no-untyped-call]
    return output


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        act: Callable[[Tensor], Tensor],
        gate: Tensor,
        up: Tensor,
        frozen: list[_Frozen],
        factors: _Factors | None,
        *learned: Tensor,
    ) -> Tensor:
        ctx.act, ctx.compiled = act, act is silu and compiled.fits(gate)
        inner = compiled.swiglu(gate, up) if ctx.compiled else act(gate) * up
        (y,) = _LoraLinears.forward(ctx, inner, None, frozen, factors, *learned)
        ctx.save_for_backward(gate, up, *ctx.to_save[1:])
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *kept = ctx.saved_tensors
        if ctx.compiled:
            d_inner, d_learned = _GatedLinear._of_inner(ctx, compiled.swiglu(gate, up), kept, grad)
            return None, *compiled.swiglu_backward(d_inner, gate, up), None, None, *d_learned
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            act = ctx.act(gate)
        d_inner, d_learned = _GatedLinear._of_inner(ctx, act.detach() * up, kept, grad)
        (d_gate,) = torch.autograd.grad(act, gate, d_inner * up)
        return None, d_gate, d_inner.mul_(act.detach()), None, None, *d_learned

    @staticmethod
    def _of_inner(ctx: Any, inner: Tensor, kept: list[Tensor], grad: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The gradients of what the layer read, and of its A and B."""
        of_layer = SimpleNamespace(
            frozen=ctx.frozen, factors=ctx.factors, saved_tensors=(inner, *kept), needs_input_grad=(True, False)
        )
        d_inner, _, _, _, *d_learned = _LoraLinears.backward(of_layer, grad)
        assert d_inner is not None  # it was asked for
        return d_inner, d_learned


def _rows(x: Tensor) -> Tensor:
    """[..., width] → [N, width]."""
    return x.reshape(-1, x.shape[-1])
