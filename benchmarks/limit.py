"""The matrix products that a LoRA step cannot avoid: counted here, and timed at their shapes on this machine.

Counted for a Llama-shaped model (q, k, v, o, gate, up, down in each layer) with a frozen base:

- A token is computed once, however many rows of the step begin with it and all before it (dropout 0), and only up to
  the last one that predicts a label.
- A frozen linear layer takes two products, forward and input gradient; its weight gradient nobody needs. The first
  layer's q, k and v get no input gradient: nothing before them is trained. In the last layer only q, o and the
  MLP of tokens that predict a label reach the loss, while k and v of all do.
- LoRA takes two thin products forward, and two each for the gradients of its input and of its matrices.
- Attention takes scores and values forward, and four such products backward, over the tokens a token may see.
- The head takes two products, on tokens that predict a label.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.task import IGNORE, num_labels

TIMED_SECONDS = 0.3  # a shape, at least
AT_ONCE = 20  # calls that a GPU is timed with


@dataclass(frozen=True)
class Product:
    """`[m, k] @ [k, n]`, `batch` of them at once, `times` such calls in a step."""

    part: str
    m: int
    k: int
    n: int
    times: float = 1
    batch: int = 1

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.m * self.k * self.n * self.times


@dataclass(frozen=True)
class Tokens:
    """Of one step. `contexts`: the tokens that each distinct token attends to, itself among them, summed."""

    distinct: int
    labelled: int
    contexts: int


def count_tokens(input_ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Tokens:
    """Distinct tokens of a step's rows: the nodes of the tree that their beginnings make.

    [A B c] and [A B d e], both ending where the last label is predicted, have 2 + 1 + 2 = 5; their contexts are
    (1 + 2) + 3 + (3 + 4).
    """
    rows = sorted(list(ids[: _last_label(marks)]) for ids, marks in zip(input_ids, labels, strict=True))
    distinct = contexts = 0
    for before, row in itertools.pairwise([[], *rows]):
        shared = _shared(before, row)
        distinct += len(row) - shared
        contexts += sum(range(shared + 1, len(row) + 1))
    return Tokens(distinct, sum(num_labels(list(marks)) for marks in labels), contexts)


def _last_label(labels: Sequence[int]) -> int:
    return max(i for i, label in enumerate(labels) if label != IGNORE)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    same = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(same, min(len(first), len(second)))


def products(config: Any, tokens: Tokens, rank: int) -> Iterator[Product]:
    """All products of one step. `config`: a Llama-shaped text config of transformers."""
    hidden, wide, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    narrow = config.num_key_value_heads * width
    layers = config.num_hidden_layers
    reads_all = [(hidden, narrow), (hidden, narrow)]  # k, v
    reads_predicting = [
        (hidden, heads * width),
        (heads * width, hidden),
        (hidden, wide),
        (hidden, wide),
        (wide, hidden),
    ]
    for layer in range(layers):
        predicting = tokens.labelled if layer == layers - 1 else tokens.distinct
        linear = [(tokens.distinct, *sizes) for sizes in reads_all] + [
            (predicting, *sizes) for sizes in reads_predicting
        ]
        for index, (m, k, n) in enumerate(linear):
            yield Product("linear forward", m, k, n)
            if layer > 0 or index > 2:  # not the first layer's k, v and q
                yield Product("linear input gradient", m, n, k)
                yield Product("LoRA", m, rank, k)  # to the input
            yield Product("LoRA", m, k, rank)  # A forward
            yield Product("LoRA", m, rank, n)  # B forward
            yield Product("LoRA", m, n, rank)  # to A's output
            yield Product("LoRA", rank, m, k)  # of A
            yield Product("LoRA", n, m, rank)  # of B
    yield from _attention(layers, heads, width, tokens)
    yield Product("head", tokens.labelled, hidden, config.vocab_size)
    yield Product("head", tokens.labelled, config.vocab_size, hidden)


def _attention(layers: int, heads: int, width: int, tokens: Tokens) -> Iterator[Product]:
    """Six products a layer, timed as square ones of a mean context and counted by the contexts that are needed."""
    mean = max(1, round(tokens.contexts / tokens.distinct))
    calls = layers * tokens.contexts / mean**2
    yield Product("attention", mean, width, mean, times=3 * calls, batch=heads)
    yield Product("attention", mean, mean, width, times=3 * calls, batch=heads)


def merged(all_products: Iterable[Product]) -> list[Product]:
    """Products of the same shape as one, with their `times` added."""
    times: dict[Product, float] = {}
    for product in all_products:
        shape = replace(product, times=1)
        times[shape] = times.get(shape, 0) + product.times
    return [replace(shape, times=count) for shape, count in times.items()]


def rate(product: Product, dtype: str, device: str) -> float:
    """FLOP/s of a product of this shape: the best of several runs."""
    import torch

    left, right = (
        torch.randn(product.batch, *shape).to(device, getattr(torch, dtype)).squeeze(0)
        for shape in ((product.m, product.k), (product.k, product.n))
    )
    calls = 1
    work: Callable[[], object] = partial(torch.matmul, left, right)
    if device == "cuda":  # where a call takes longer to start than to run
        work()
        graph, calls = torch.cuda.CUDAGraph(), AT_ONCE
        with torch.cuda.graph(graph):
            for _ in range(calls):
                torch.matmul(left, right)
        work = graph.replay
    runs: list[float] = []
    while sum(runs) < TIMED_SECONDS and len(runs) < 50:
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.accelerator.synchronize()
        runs.append(time.perf_counter() - began)
    return calls * replace(product, times=1).flops / min(runs)
