"""All running requests in one forward: a flat row of their new tokens through stock model code.

    input_ids    [7 │ 4 │ 9 │ 3 1 8 2]      three requests a token further, and a part of a fourth's prompt
    position_ids [5 │ 9 │ 2 │ 0 1 2 3]

As in training, the linear layers see real tokens only, and one attention function, registered with
`transformers.AttentionInterface`, knows which token belongs to whom: requests that are a token further lie side by side
in a pool and attend together; a part of a prompt attends by itself. Tokens are ordered by adapter.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from luthier.engine.instance import restore
from luthier.engine.layout import common_prefix
from luthier.engine.scores import Scores
from luthier.inference.adapters import Adapters
from luthier.inference.decode import Running
from luthier.inference.kept import Kept, Pool, Shape
from luthier.inference.layers import Trial, fuse
from luthier.inference.products import Products
from luthier.inference.rows import NotTheRow, Rows

NAME = "luthier_generate"

CHUNK, ALONE = 128, 512
"""Tokens of prompts in one forward, beside running answers, which wait for it, and without."""
SMALLEST_POOL = 128  # tokens
WORTH_WAITING = 16
"""So many first tokens in common with a prompt that is just being computed are waited for."""

T = TypeVar("T")


@dataclass(eq=False)
class Prompt:
    """The cache of a request whose prompt is being computed: [layers, prompt, heads, width]."""

    keys: Tensor
    values: Tensor


@dataclass(eq=False)
class Slot:
    """The cache of a request that is being answered."""

    pool: Pool
    place: int


@dataclass
class Part:
    """Tokens [start, end) of the flat row: the next of all requests in a pool, or some of one prompt.

    before: for each of its requests, how many tokens lie in the cache already.
    """

    adapter: str | None
    requests: list[Running]
    cache: Pool | Prompt
    before: list[int]
    count: int  # tokens of each request
    start: int = 0
    _made: dict[Any, Any] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.start + len(self.requests) * self.count

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` gives, made once for all layers."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int, scores: Scores) -> Tensor:
        """Takes the new keys and values [n, heads, width] into the cache, and gives what queries [n, H, D] see."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        longest = max(self.before) + self.count
        heads = key.shape[1]
        if isinstance(self.cache, Pool):
            places = self.once("places", lambda: self._places(key.device))
            keys.flatten(0, 1).index_copy_(0, places, key)
            values.flatten(0, 1).index_copy_(0, places, value)
            keys, values = keys[: len(self.requests), :longest], values[: len(self.requests), :longest]
            grouped = query.reshape(len(query), heads, -1, query.shape[-1])  # those that share keys, side by side
        else:
            keys[longest - self.count : longest] = key
            values[longest - self.count : longest] = value
            keys, values = keys[None, :longest], values[None, :longest]
            grouped = query.transpose(0, 1).reshape(1, heads, -1, query.shape[-1])
        mask = self.once(scores.window, lambda: self._mask(scores.window, longest, query, heads))
        seen = attention(grouped, keys.transpose(1, 2), values.transpose(1, 2), mask, scores, self.count)
        if isinstance(self.cache, Pool):
            return seen.flatten(1, 2)
        return seen.reshape(-1, self.count, seen.shape[-1]).transpose(0, 1)  # a GPU lays its heads otherwise

    def _places(self, device: torch.device) -> Tensor:
        """Where each request's new token lies in the pool, its slots laid end to end."""
        assert isinstance(self.cache, Pool)
        capacity = self.cache.capacity
        return torch.tensor([slot * capacity + before for slot, before in enumerate(self.before)], device=device)

    def _mask(self, window: int | None, longest: int, query: Tensor, heads: int) -> Tensor | None:
        """What is added to scores [requests, heads, queries, longest]: -inf where a token is not seen."""
        window = longest if window is None else window
        if self.count == 1 and min(self.before) + 1 == longest <= window:
            return None
        own = torch.tensor(self.before, device=query.device)[:, None] + torch.arange(self.count, device=query.device)
        other = torch.arange(longest, device=query.device)
        hidden = (other > own[..., None]) | (other <= own[..., None] - window)  # [requests, count, longest]
        mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, -math.inf)
        groups = 1 if self.count == 1 else query.shape[1] // heads
        return mask.repeat(1, groups, 1)[:, None]


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scores: Scores, count: int) -> Tensor:
    """query [B, G, R, D], key and value [B, G, L, D], mask [B, 1, R or 1, L] → [B, G, R, D].

    R: the heads that share keys, each with `count` tokens.
    """
    if scores.plain:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scores.scaling)
    products = (query @ key.mT * scores.scaling).float()
    if scores.cap is not None:
        products = scores.cap * torch.tanh(products / scores.cap)
    if mask is not None:
        products = products + mask
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(1, key.shape[1], -1, 1).repeat_interleave(count, dim=2)
        products = torch.cat([products, sinks.expand(len(query), -1, -1, 1)], dim=-1)
    return products.softmax(-1)[..., : key.shape[2]].to(value.dtype) @ value


def cached_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    parts: list[Part] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens to their own requests': query [1, H, N, D], key and value [1, G, N, D] → [1, N, H, D]."""
    if parts is None:
        raise ValueError("its attention is not told which token belongs to which request")
    scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    if isinstance(parts, Trial):
        parts.scores[module] = scores
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(parts, query, key, value, module.layer_idx, scores)[None], None  # type: ignore[arg-type]


def attend(parts: list[Part], query: Tensor, key: Tensor, value: Tensor, layer: int, scores: Scores) -> Tensor:
    """The same for query [N, H, D], key and value [N, G, D] → [N, H, D]."""
    if len(parts) == 1:
        return parts[0].attend(query, key, value, layer, scores)
    seen = []
    for part in parts:
        mine = slice(part.start, part.end)
        seen.append(part.attend(query[mine], key[mine], value[mine], layer, scores))
    return torch.cat(seen)


class Together:
    """Requests computed together, their keys and values kept; what a prompt begins with is taken from earlier ones.

    Args:
        kept_bytes: what the keys and values of earlier requests may take.
    """

    def __init__(self, adapters: Adapters, shape: Shape, *, kept_bytes: int) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, cached_attention)
        self.adapters, self.shape = adapters, shape
        self.kept = Kept(shape, kept_bytes)
        self.rows = Rows(Products(adapters.causal))
        self.mixed = False
        self._pools: dict[tuple[str | None, int], Pool] = {}
        self._owners: dict[Pool, list[Running]] = defaultdict(list)
        self._before = adapters.model.config._attn_implementation
        self.refresh()

    def refresh(self) -> None:
        """After the model's adapters changed."""
        causal, loaded = self.adapters.causal, self.adapters.loaded
        causal.set_attn_implementation(NAME)
        restore(self.adapters.model)
        self.rows.product.install(causal)
        self.mixed = self.rows.install(self.adapters.model, loaded)
        if not self.mixed:
            return
        try:
            fuse(causal, self.rows, loaded, attend, self._trial)
        except NotTheRow:  # experts see some of the tokens
            self.mixed = False
            restore(self.adapters.model)
            self.rows.product.install(causal)

    def _trial(self) -> Trial:
        """A forward of a few tokens for each adapter, and without."""
        requests = [Running([1, 2, 3], adapter) for adapter in (None, *sorted(self.adapters.loaded))]
        parts = Trial(list(self._prompts(requests, ALONE)))
        self._forward(parts)
        return parts

    def step(self, running: Sequence[Running]) -> tuple[list[Running], Tensor]:
        answering = [request for request in running if isinstance(request.cache, Slot)]
        for request in answering:
            self._make_room(request)
        parts = [
            Part(owners[0].adapter, list(owners), pool, [request.computed for request in owners], 1)
            for pool, owners in self._owners.items()
        ]
        parts += self._prompts([r for r in running if r not in answering], CHUNK if answering else ALONE)
        parts.sort(key=lambda part: part.adapter or "")
        ready, logits = [], []
        for group in [parts] if self.mixed else _by_adapter(parts):
            requests, found = self._forward(group)
            ready += requests
            logits.append(found)
        for request in ready:
            if isinstance(request.cache, Prompt):
                self._enter(request)
        return ready, torch.cat(logits)

    def _prompts(self, waiting: list[Running], budget: int) -> Iterable[Part]:
        """Parts of prompts, first come first served, as many tokens as the budget allows."""
        ahead: list[Running] = []
        for request in waiting:
            if budget == 0:
                break
            if request.cache is None:
                found = self.kept.find(request.adapter, request.ids)
                shared = sum(count for _, count in found)
                coming = [common_prefix(r.ids, request.ids) for r in ahead if r.adapter == request.adapter]
                if max(coming, default=0) - shared >= WORTH_WAITING:
                    continue  # soon it need not be computed
                request.cache = Prompt(*self.shape.empty(len(request.ids)))
                for node, count in found:
                    first, end = request.computed, request.computed + count
                    request.cache.keys[:, first:end] = node.keys[:, :count]
                    request.cache.values[:, first:end] = node.values[:, :count]
                    request.computed = request.reused = end
            count = min(budget, len(request.ids) - request.computed)
            budget -= count
            ahead.append(request)
            yield Part(request.adapter, [request], request.cache, [request.computed], count)

    def _forward(self, parts: list[Part]) -> tuple[list[Running], Tensor]:
        """The requests of these parts whose next token can be chosen, and its logits."""
        ids: list[int] = []
        positions: list[int] = []
        ready: list[Running] = []
        last: list[int] = []
        for part in parts:
            part.start = len(ids)
            for request in part.requests:
                first, end = request.computed, request.computed + part.count
                ids += request.ids[first:end]
                positions += range(first, end)
                if end == len(request.ids):
                    ready.append(request)
                    last.append(len(ids) - 1)
        self.rows.tokens = len(ids)
        self.rows.spans = [(part.adapter, part.start, part.end) for part in parts if part.adapter is not None]
        device = self.shape.device
        with contextlib.nullcontext() if self.mixed else self.adapters.only(parts[0].adapter):
            logits: Tensor = self.adapters.causal(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                parts=parts,
                use_cache=False,
                logits_to_keep=torch.tensor(last or [0], device=device),
            ).logits[0]
        for part in parts:
            for request in part.requests:
                request.computed += part.count
        return ready, logits[: len(last)]

    def _enter(self, request: Running) -> None:
        """From a prompt of its own, which is kept, into a pool."""
        keys, values = request.cache.keys, request.cache.values
        self.kept.keep(request.adapter, request.ids, keys, values)
        self._put(request, keys, values, len(request.ids) + 1)

    def _put(self, request: Running, keys: Tensor, values: Tensor, tokens: int) -> None:
        """Into the pool for so many tokens."""
        capacity = max(SMALLEST_POOL, 1 << (tokens - 1).bit_length())
        pool = self._pools.get((request.adapter, capacity)) or Pool(self.shape, capacity)
        self._pools[request.adapter, capacity] = pool
        request.cache = Slot(pool, pool.add(keys, values))
        self._owners[pool].append(request)

    def _make_room(self, request: Running) -> None:
        """For one token more: into a larger pool where its own is full."""
        slot, length = request.cache, len(request.ids)
        if length > slot.pool.capacity:
            keys, values = slot.pool.read(slot.place, request.computed)
            self._put(request, keys, values, length)
            self._free(slot, request.adapter)

    def _free(self, slot: Slot, adapter: str | None) -> None:
        """The last request of the pool moves to this slot."""
        owners = self._owners[slot.pool]
        slot.pool.remove(slot.place)
        last = owners.pop()
        if slot.place < len(owners):
            owners[slot.place] = last
            last.cache.place = slot.place
        if not owners:
            del self._owners[slot.pool], self._pools[adapter, slot.pool.capacity]

    def end(self, request: Running, *, keep: bool) -> None:
        slot, request.cache = request.cache, None
        if not isinstance(slot, Slot):
            return
        if keep:
            keys, values = slot.pool.read(slot.place, request.computed)
            self.kept.keep(request.adapter, request.ids[: request.computed], keys, values)
        self._free(slot, request.adapter)

    def forget(self, adapter: str | None) -> None:
        self.kept.forget(adapter)

    def close(self) -> None:
        restore(self.adapters.model)
        self.adapters.causal.set_attn_implementation(self._before)


def _by_adapter(parts: list[Part]) -> list[list[Part]]:
    groups: dict[str | None, list[Part]] = defaultdict(list)
    for part in parts:
        groups[part.adapter].append(part)
    return list(groups.values())
