"""Loops over the values between two products, compiled by numba: one pass each, where torch takes one an operation.

Values are float32, or bfloat16 as its 16 bits; sums and what lies between are float32, rounded once. Each is one
thread's work. `compiled` calls them with tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir
import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

LOOP: Any = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "reassoc"}}
"""Sums are taken in several lanes. What must be rounded in one order says so by `_fma`."""

part = njit(inline="always", error_model="numpy")
"""Of a loop: compiled with it, for the same bits whatever of this module was compiled before, or loaded from disk."""

F, U = np.float32, np.uint32
WORD = llvmlite.ir.IntType(32)


def _instruction(result: Any, *inputs: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function of numba that is one instruction, which the decorated one builds."""

    def of(build: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return build(builder, *values)

        one = lambda typing, x: (result(*inputs), generate)  # noqa: E731  numba reads the number of arguments off it
        three = lambda typing, x, y, z: (result(*inputs), generate)  # noqa: E731
        return intrinsic(one if len(inputs) == 1 else three)

    return of


@_instruction(types.uint32, types.float32)
def _bits(builder: Any, x: Any) -> Any:
    return builder.bitcast(x, WORD)


@_instruction(types.float32, types.uint32)
def _number(builder: Any, x: Any) -> Any:
    return builder.bitcast(x, llvmlite.ir.FloatType())


@_instruction(types.float32, types.float32, types.float32, types.float32)
def _fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once."""
    return builder.fma(x, y, z)


@_instruction(types.uint16, types.float32)
def _rounded(builder: Any, x: Any) -> Any:
    bits = builder.bitcast(x, WORD)
    odd = builder.and_(builder.lshr(bits, WORD(16)), WORD(1))
    nearest = builder.lshr(builder.add(bits, builder.add(odd, WORD(0x7FFF))), WORD(16))
    is_none = builder.fcmp_unordered("uno", x, x)
    return builder.trunc(builder.select(is_none, WORD(0x7FC0), nearest), llvmlite.ir.IntType(16))


def _wide(value: Any) -> Any:
    """float32 of a value as it is kept."""


@overload(_wide, inline="always", strict=False)  # type: ignore[untyped-decorator]
def _wide_of(value: Any) -> Any:
    if isinstance(value, types.Integer):
        return lambda value: _number(U(U(value) << U(16)))
    return lambda value: value


def _kept(like: Any, x: Any) -> Any:
    """float32 as a value of this array is kept: bfloat16 rounds to the nearest, of two the even one."""


@overload(_kept, inline="always", strict=False)  # type: ignore[untyped-decorator]
def _kept_as(like: Any, x: Any) -> Any:
    if isinstance(like.dtype, types.Integer):
        return lambda like, x: _rounded(x)
    return lambda like, x: x


@part  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    """e^x to 1e-7 of itself, 0 below -87, e^88 above 88: 2^n e^r, with the polynomial of Cephes' expf."""
    nothing = x < F(-87.0)
    x = F(-87.0) if nothing else x
    x = F(88.0) if x > F(88.0) else x
    n = np.rint(x * F(1.4426950408889634))
    r = _fma(n, F(2.12194440e-4), _fma(n, F(-0.693359375), x))
    p = _fma(F(1.9875691500e-4), r, F(1.3981999507e-3))
    p = _fma(p, r, F(8.3334519073e-3))
    p = _fma(p, r, F(4.1665795894e-2))
    p = _fma(p, r, F(1.6666665459e-1))
    p = _fma(p, r, F(5.0000001201e-1))
    power = _number(U(np.int32(n) + np.int32(127)) << U(23))
    return F(0.0) if nothing else _fma(p * r, r, r + F(1.0)) * power


@njit(**LOOP)  # type: ignore[untyped-decorator]
def rms_norm(x: Any, weight: Any, eps: Any, y: Any, r: Any) -> None:
    """y = x r weight, r = 1 / sqrt(mean(x^2) + eps). x, y: [N, H]; weight: [H]; r: [N]."""
    width = x.shape[1]
    for row in range(x.shape[0]):
        total = F(0.0)
        for j in range(width):
            value = _wide(x[row, j])
            total += value * value
        scale = F(1.0) / np.sqrt(total / F(width) + eps)
        r[row] = scale
        for j in range(width):
            y[row, j] = _kept(y, _wide(x[row, j]) * scale * weight[j])


@njit(**LOOP)  # type: ignore[untyped-decorator]
def rms_norm_backward(g: Any, x: Any, weight: Any, r: Any, dx: Any) -> None:
    """dx = r (g weight) - x r^3 mean(g weight x)."""
    width = x.shape[1]
    for row in range(x.shape[0]):
        total = F(0.0)
        for j in range(width):
            total += _wide(g[row, j]) * weight[j] * _wide(x[row, j])
        scale = r[row]
        drawn = scale * scale * scale * total / F(width)
        for j in range(width):
            dx[row, j] = _kept(dx, _wide(g[row, j]) * weight[j] * scale - _wide(x[row, j]) * drawn)


@njit(**LOOP)  # type: ignore[untyped-decorator]
def rotate(x: Any, cos: Any, sin: Any, y: Any) -> None:
    """y = x turned: [N, H, D], of which the first R values are by cos and sin [N, R]."""
    rows, heads, width = x.shape
    half = cos.shape[1] // 2
    for row in range(rows):
        for head in range(heads):
            for j in range(half):
                first, second = _wide(x[row, head, j]), _wide(x[row, head, half + j])
                y[row, head, j] = _kept(y, first * _wide(cos[row, j]) - second * _wide(sin[row, j]))
                turned = second * _wide(cos[row, half + j]) + first * _wide(sin[row, half + j])
                y[row, head, half + j] = _kept(y, turned)
            for j in range(2 * half, width):
                y[row, head, j] = x[row, head, j]


@njit(**LOOP)  # type: ignore[untyped-decorator]
def swiglu(gate: Any, up: Any, y: Any) -> None:
    """y = gate sigmoid(gate) up, all [n]."""
    for i in range(gate.size):
        x = _wide(gate[i])
        y[i] = _kept(y, x / (F(1.0) + _exp(-x)) * _wide(up[i]))


@njit(**LOOP)  # type: ignore[untyped-decorator]
def swiglu_backward(g: Any, gate: Any, up: Any, d_gate: Any, d_up: Any) -> None:
    for i in range(gate.size):
        x, of_y = _wide(gate[i]), _wide(g[i])
        sigmoid = F(1.0) / (F(1.0) + _exp(-x))
        act = x * sigmoid
        d_up[i] = _kept(d_up, of_y * act)
        d_gate[i] = _kept(d_gate, of_y * _wide(up[i]) * (sigmoid + act * (F(1.0) - sigmoid)))


@part  # type: ignore[untyped-decorator]
def _largest(x: Any) -> Any:
    """By its bits, as integers in the order of the numbers: of these the largest is found in several lanes."""
    top = _ordered(np.int32(_bits(F(-np.inf))))
    for i in range(x.size):
        place = _ordered(np.int32(_bits(_wide(x[i]))))
        top = place if place > top else top
    return _number(U(_ordered(top)))


@part  # type: ignore[untyped-decorator]
def _ordered(bits: Any) -> Any:
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@part  # type: ignore[untyped-decorator]
def _exps(x: Any, top: Any, room: Any) -> Any:
    """room = exp(x - top), and its sum: beside a large one in float32 small ones would be lost, in each row alike."""
    total: Any = 0.0
    for start in range(0, x.size, 512):
        some, place, of_some = x[start : start + 512], room[start : start + 512], F(0.0)
        for i in range(some.size):
            place[i] = _exp(_wide(some[i]) - top)
            of_some += place[i]
        total += of_some
    return F(total)


@njit(**LOOP)  # type: ignore[untyped-decorator]
def cross_entropy(logits: Any, targets: Any, losses: Any, gradient: Any, room: Any) -> None:
    """losses [M] of logits [M, V], which are overwritten by their gradient where that is asked for. room: [V]."""
    for row in range(logits.shape[0]):
        x, target = logits[row], targets[row]
        top = _largest(x)
        total = _exps(x, top, room)
        losses[row] = np.log(total) - (_wide(x[target]) - top)
        if gradient:
            share = F(1.0) / total
            for i in range(x.size):
                x[i] = _kept(x, room[i] * share)
            x[target] = _kept(x, room[target] * share - F(1.0))


@part  # type: ignore[untyped-decorator]
def _seen(query: Any, keys: Any, behind: Any, before: Any) -> Any:
    last = min(keys, max(0, query + behind))
    return min(last, max(0, query + before)), last


@njit(**LOOP)  # type: ignore[untyped-decorator]
def tops(scores: Any, behind: Any, before: Any, top: Any) -> None:
    """The largest score of each query, [B, L]. Query l sees the keys from l + before on, up to l + behind, without it.

    scores: [B, L, S].
    """
    batch, queries, keys = scores.shape
    for b in range(batch):
        for q in range(queries):
            first, last = _seen(q, keys, behind, before)
            top[b, q] = _largest(scores[b, q, first:last])


@njit(**LOOP)  # type: ignore[untyped-decorator]
def dots(a: Any, b: Any, sums: Any) -> None:
    """sum(a b) of each row, [N], of a and b [N, D]."""
    for row in range(a.shape[0]):
        total = F(0.0)
        for i in range(a.shape[1]):
            total += _wide(a[row, i]) * _wide(b[row, i])
        sums[row] = total


@part  # type: ignore[untyped-decorator]
def _weigh(x: Any) -> Any:
    total = F(0.0)
    for i in range(x.size):
        p = _kept(x, _exp(_wide(x[i])))
        x[i] = p
        total += _wide(p)
    return total


@njit(**LOOP)  # type: ignore[untyped-decorator]
def weigh(scores: Any, behind: Any, before: Any, totals: Any) -> None:
    """scores become exp(scores), 0 where hidden, whose sums are totals [B, L]."""
    batch, queries, keys = scores.shape
    for b in range(batch):
        for q in range(queries):
            first, last = _seen(q, keys, behind, before)
            x = scores[b, q]
            x[:first] = 0
            totals[b, q] = _weigh(x[first:last])
            x[last:] = 0


@part  # type: ignore[untyped-decorator]
def _weigh_backward(x: Any, g: Any) -> None:
    for i in range(x.size):
        p = _exp(_wide(x[i]))
        x[i] = _kept(x, p)
        g[i] = _kept(g, p * _wide(g[i]))


@njit(**LOOP)  # type: ignore[untyped-decorator]
def weigh_backward(scores: Any, gradient: Any, behind: Any, before: Any) -> None:
    """scores become p = exp(scores), 0 where hidden; gradient [B, L, S] becomes p gradient."""
    batch, queries, keys = scores.shape
    for b in range(batch):
        for q in range(queries):
            first, last = _seen(q, keys, behind, before)
            x, g = scores[b, q], gradient[b, q]
            x[:first] = g[:first] = 0
            _weigh_backward(x[first:last], g[first:last])
            x[last:] = g[last:] = 0
