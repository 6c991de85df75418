"""Decoder layers as Llama has them, in a third of the calls: for one token, most of a step goes into calls.

    x += o(attend(rotate(norm(q)), rotate(norm(k)), v)),   q, k, v = [Wq; Wk; Wv] norm(x)
    x += down(act(gate) up),   gate, up = [Wgate; Wup] norm(x)

q and k are normalised (Qwen3) and rotated together. On a CPU weights that read the same input are laid one behind the
other in memory, each parameter a view of its part: nothing is there twice, and the model stays what it was. Files are
mapped as they are, so weights begin anywhere: where they begin with a cache line, a product of some rows is 10 %
faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from luthier.engine.instance import is_replaced, relative_error, replace_forward
from luthier.engine.scores import Scores
from luthier.inference.rows import Linears, Rows

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
"""A layer of more parts than these does more."""
CACHE_LINE = 64  # bytes

Attend = Callable[[Any, Tensor, Tensor, Tensor, int, Scores], Tensor]
"""parts, query [N, H, D], key and value [N, G, D], layer, scores → [N, H, D]."""


class Trial(list[Any]):
    """Parts of a flat row that tell how each attention module computes its scores."""

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__(parts)
        self.scores: dict[nn.Module, Scores] = {}


@torch.no_grad()  # type: ignore[untyped-decorator]
def fuse(model: nn.Module, rows: Rows, adapters: set[str], attend: Attend, trial: Callable[[], Trial]) -> int:
    """Gives the layers of the causal model that are of this kind this forward; returns how many have it.

    A layer first proves that it is of this kind: its own forward and this one agree in a trial forward of the model.
    """
    met: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = []
    hooks = [
        module.register_forward_hook(lambda *seen: met.append(seen), with_kwargs=True)
        for module in model.modules()
        if {name for name, _ in module.named_children()} == CHILDREN
    ]
    try:
        scores = trial().scores
    finally:
        for hook in hooks:
            hook.remove()
    fused = 0
    for layer, args, kwargs, expected in met:
        try:
            forward = _Layer(layer, rows, adapters, attend, scores)
            found = forward(None, *args, **kwargs)
            agrees = relative_error(found, expected) <= TOLERANCE[found.dtype]
        except Exception:  # whatever else a layer with such parts may be
            continue
        if agrees:
            for module in layer.modules():  # none of them is called any more
                if is_replaced(module):
                    del module.forward
            replace_forward(layer, forward)
            fused += 1
    if fused:
        for parameter in model.parameters():  # the others, so that nothing is left of the mapped file
            if parameter.device.type == "cpu" and parameter.data_ptr() % CACHE_LINE:
                parameter.data = parameter.data.clone()
    return fused


class _Layer:
    def __init__(
        self, layer: Any, rows: Rows, adapters: set[str], attend: Attend, scores: dict[nn.Module, Scores]
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attend, self.scores, self.index = attend, scores[attention], attention.layer_idx
        self.width: int = attention.head_dim
        self.heads, self.groups = (part.out_features // self.width for part in (attention.q_proj, attention.k_proj))
        self.before_attention, self.before_mlp = map(_norm, (layer.input_layernorm, layer.post_attention_layernorm))
        self.head_norm = None
        if hasattr(attention, "q_norm"):
            (q, eps), (k, _) = _norm(attention.q_norm), _norm(attention.k_norm)
            self.head_norm = torch.cat((q.expand(self.heads, -1), k.expand(self.groups, -1))), eps

        def together(*layers: Any) -> Linears:
            return Linears(rows, layers, _products([getattr(layer, "base_layer", layer) for layer in layers]), adapters)

        self.qkv = together(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = together(attention.o_proj)
        self.gate_up = together(mlp.gate_proj, mlp.up_proj)
        self.down = together(mlp.down_proj)
        self.act = mlp.act_fn

    def __call__(
        self, own: object, hidden: Tensor, *, position_embeddings: tuple[Tensor, Tensor], parts: Any, **_: Any
    ) -> Tensor:
        x = hidden[0]
        qkv = self.qkv(_normalise(x, *self.before_attention)).view(len(x), -1, self.width)
        turning = qkv[:, : -self.groups]
        if self.head_norm is not None:
            weight, eps = self.head_norm
            turning = rms_norm(turning, (self.width,), eps=eps) * weight
        cos, sin = parts[0].once(("rotary", id(position_embeddings)), lambda: _rotary(position_embeddings))[:2]
        turned = torch.addcmul(turning * cos, turning.roll(self.width // 2, -1), sin)
        seen = self.attend(
            parts, turned[:, : self.heads], turned[:, self.heads :], qkv[:, -self.groups :], self.index, self.scores
        )
        x = x + self.out(seen.reshape(len(x), -1))
        gate, up = self.gate_up(_normalise(x, *self.before_mlp)).chunk(2, dim=-1)
        return (x + self.down(self.act(gate) * up))[None]


def _rotary(embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Any]:
    """cos and sin [1, N, D], as [N, 1, D] for all heads, sin with the sign of x's half that it multiplies.

    The embeddings themselves come along, as what is known by its id has to live."""
    cos, sin = (x[0][:, None] for x in embeddings)
    first, second = sin.chunk(2, dim=-1)
    return cos, torch.cat((-first, second), dim=-1), embeddings


def _norm(norm: Any) -> tuple[Tensor, float]:
    """The weight and epsilon of an RMSNorm."""
    eps: float = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return norm.weight.detach().clone(), eps


def _normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x, weight.shape, weight, eps)


def _products(layers: Sequence[Any]) -> list[tuple[Tensor, Tensor | None]]:
    """Weights and biases of linear layers, on a CPU as one. A GPU's stay where they are: a CUDA graph may read them."""
    if not all(type(layer) is nn.Linear for layer in layers):
        raise ValueError("not ordinary linear layers")
    if layers[0].weight.device.type != "cpu":
        return [(layer.weight, layer.bias) for layer in layers]
    return [_side_by_side(layers)]


def _side_by_side(layers: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """The weights of linear layers as one [sum of out, in], of which theirs become views, and their biases."""
    weights = [layer.weight for layer in layers]
    if _lie_so(weights):
        size = (sum(map(len, weights)), weights[0].shape[1])
        whole = weights[0].detach().as_strided(size, weights[0].stride())
    else:
        whole = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, torch.split(whole, list(map(len, weights))), strict=True):
            weight.data = part
    biases = [layer.bias for layer in layers]
    if all(bias is None for bias in biases):
        return whole, None
    return whole, torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)])


def _lie_so(weights: Sequence[Tensor]) -> bool:
    """Whether they are side by side already, at the beginning of a cache line."""
    ends = [weight.data_ptr() + weight.nbytes for weight in weights]
    one_piece = len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    return (
        one_piece
        and ends[:-1] == [weight.data_ptr() for weight in weights[1:]]
        and weights[0].data_ptr() % CACHE_LINE == 0
    )
