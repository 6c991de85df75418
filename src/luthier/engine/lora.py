"""LoRA layers that read the same input, forward and backward in one go.

For the layers W1, W2, … of a group (q, k and v; gate and up; or one alone), each with an adapter A, B and its scale
s = alpha / rank, and x of shape [N, in]:

    t  = x [A1; A2; …]^T                       one product for all of them          [N, sum of ranks]
    yi = ti (si Bi)^T + x Wi^T + bi            added in this order                  [N, out]

    u  = [g1 s1 B1, g2 s2 B2, …]               gi: the gradient of yi               [N, sum of ranks]
    dA = u^T x,   dBi = si gi^T ti             never a gradient of W's size
    dx = g1 W1 + g2 W2 + … + u [A1; A2; …]     added in place

Only x and t are kept for the backward. Products run in the dtype of W, over float32 masters of A and B. In half
precision what a young adapter adds is less than half the last bit of x Wi^T: added to that after it was rounded, as
PEFT does, all of it would be lost. So x Wi^T is added to it, before anything is rounded. With dropout each layer drops
other values of x, so each has its own product in place of the common one. LoRA: arXiv 2106.09685; PEFT's own layers
are the plain twin.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from luthier.engine.instance import evaluating, replace_forward


def fuse(model: Any) -> int:
    """Gives the plain LoRA layers of this model instance the fused forward; returns how many have it.

    A layer that is more than `y + s B A x` (DoRA, a bias in the adapter, a quantized base) stays PEFT's.
    """
    groups = _sharing_an_input(model)
    for layers in groups:
        group = _Group(layers)
        for index, layer in enumerate(layers):
            replace_forward(layer, partial(group.forward, index))
    return sum(map(len, groups))


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


def lora_linears(x: Tensor, layers: list[Any]) -> tuple[Tensor, ...]:
    """What each LoRA layer makes of x [..., in]: [..., out], in the dtype of the layers' weights."""
    frozen, learned, dropouts = zip(*map(_parts, layers), strict=True)
    x = x.to(frozen[0].weight.dtype)
    if any(map(_drops, layers)):
        return tuple(
            _apply(x, dropout(x), [kept], *ab)[0] for dropout, kept, ab in zip(dropouts, frozen, learned, strict=True)
        )
    return _apply(x, None, list(frozen), *itertools.chain(*learned))


def _parts(layer: Any) -> tuple[_Frozen, tuple[Tensor, Tensor], nn.Module]:
    """What a LoRA layer does not learn, its A and B, and its dropout."""
    name, base = layer.active_adapters[0], layer.base_layer
    learned = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _Frozen(base.weight, base.bias, layer.scaling[name]), learned, layer.lora_dropout[name]


def _drops(layer: Any) -> bool:
    dropout = layer.lora_dropout[layer.active_adapters[0]]
    return layer.training and isinstance(dropout, nn.Dropout) and dropout.p > 0


def _apply(x: Tensor, dropped: Tensor | None, frozen: list[_Frozen], *learned: Tensor) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] = _LoraLinears.apply(x, dropped, frozen, *learned)  # type: ignore[no-untyped-call]
    return outputs


class _LoraLinears(torch.autograd.Function):
    """`forward(x, dropped, frozen, A1, B1, A2, B2, …)`; `dropped` goes into the adapter in place of x, unless None.

    Narrow products are bound by the order in which they read: where a factor is r wide, its copy with r long rows
    multiplies up to twice as fast on a CPU as a transposed view.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, frozen: list[_Frozen], *learned: Tensor
    ) -> tuple[Tensor, ...]:
        rows, down, up = _rows(x), learned[::2], learned[1::2]
        t = (rows if dropped is None else _rows(dropped)) @ torch.cat(down).to(x.dtype).T
        outputs = []
        for layer, t_i, b in zip(frozen, torch.split(t, [len(a) for a in down], dim=1), up, strict=True):
            y = linear(t_i, _scaled(b, layer, x.dtype)).addmm_(rows, layer.weight.T)
            if layer.bias is not None:
                y += layer.bias
            outputs.append(y.view(*x.shape[:-1], -1))
        ctx.frozen = frozen
        # Without dropout x is all that is kept: with it x has no use in the backward, and `dropped` has.
        ctx.save_for_backward(x if dropped is None else dropped, t, *learned)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, t, *learned = ctx.saved_tensors
        rows, down, up = _rows(inputs), learned[::2], learned[1::2]
        ranks = [len(a) for a in down]
        needs_x, needs_dropped = ctx.needs_input_grad[:2]
        dx: Tensor | None = None
        parts: list[Tensor] = []
        d_up: list[Tensor | None] = []
        for layer, b, t_i, g in zip(ctx.frozen, up, torch.split(t.T.contiguous(), ranks), gradients, strict=True):
            if g is None:  # nothing used this output
                parts.append(t.new_zeros(len(rows), len(t_i)))
                d_up.append(None)
                continue
            g = _rows(g)
            parts.append(g @ _scaled(b, layer, g.dtype).T.contiguous().T)
            d_up.append((t_i @ g).T.to(b.dtype) * layer.scale)
            if needs_x:
                dx = g @ layer.weight if dx is None else dx.addmm_(g, layer.weight)
        u = torch.cat(parts, dim=1)
        a = torch.cat(down).to(u.dtype)
        d_down = torch.split((u.T.contiguous() @ rows).to(down[0].dtype), ranks)
        d_dropped = (u @ a).view_as(inputs) if needs_dropped else None
        if dx is not None and not needs_dropped:
            dx.addmm_(u, a)
        return (
            None if dx is None else dx.view_as(inputs),
            d_dropped,
            None,
            *itertools.chain(*zip(d_down, d_up, strict=True)),
        )


def gated_linear(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor, layer: Any) -> Tensor:
    """What a LoRA layer makes of act(gate) * up, which is computed again in the backward pass in place of kept."""
    frozen, learned, _ = _parts(layer)
    if layer.disable_adapters or layer.merged or _drops(layer) or gate.dtype != frozen.weight.dtype:
        plain: Tensor = layer(act(gate) * up)
        return plain
    output: Tensor = _GatedLinear.apply(act, gate, up, [frozen], *learned)  # type: ignore[no-untyped-call]
    return output


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor, frozen: list[_Frozen], *learned: Tensor
    ) -> Tensor:
        (y,) = _LoraLinears.forward(ctx, act(gate) * up, None, frozen, *learned)
        ctx.act = act
        ctx.save_for_backward(gate, up, *ctx.to_save[1:])
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *kept = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            act = ctx.act(gate)
        inner = SimpleNamespace(
            frozen=ctx.frozen, saved_tensors=(act.detach() * up, *kept), needs_input_grad=(True, False)
        )
        d_input, _, _, *d_learned = _LoraLinears.backward(inner, grad)
        assert d_input is not None  # it was asked for
        (d_gate,) = torch.autograd.grad(act, gate, d_input * up)
        return None, d_gate, d_input.mul_(act.detach()), None, *d_learned


def _rows(x: Tensor) -> Tensor:
    """[..., width] → [N, width]."""
    return x.reshape(-1, x.shape[-1])


def _scaled(b: Tensor, layer: _Frozen, dtype: torch.dtype) -> Tensor:
    """sB, [out, rank]."""
    return (b * layer.scale).to(dtype)
