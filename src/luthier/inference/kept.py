"""Keys and values of tokens: a request's own, those of many requests side by side, and those kept for later ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from luthier.engine.layout import common_prefix

BLOCK = 16  # tokens
PIECE = 64 << 20
"""Bytes taken from the system at once, and never given back: the C library maps so large a piece by itself, while
freed tensors of all sizes leave holes that nothing else fits into."""


class Shape(NamedTuple):
    """What a token takes: in each layer `heads` keys of `key_width` and values of `value_width`."""

    layers: int
    heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    device: torch.device

    def empty(self, *size: int) -> tuple[Tensor, Tensor]:
        """Room for keys and values: [layers, *size, heads, width]."""
        keys, values = (
            torch.zeros(self.layers, *size, self.heads, width, dtype=self.dtype, device=self.device)
            for width in (self.key_width, self.value_width)
        )
        return keys, values

    @property
    def token_bytes(self) -> int:
        return self.layers * self.heads * (self.key_width + self.value_width) * self.dtype.itemsize


class Pool:
    """Keys and values of several requests, each in a slot: [layers, slots, capacity, heads, width].

    Slots in use come first, so that one call of attention reads them all as they lie.
    """

    def __init__(self, shape: Shape, capacity: int) -> None:
        self.shape, self.capacity = shape, capacity
        self.used = 0
        self.keys, self.values = shape.empty(1, capacity)

    def add(self, keys: Tensor, values: Tensor) -> int:
        """Copies keys and values [layers, T, heads, width] into the next slot, which it returns."""
        slots = self.keys.shape[1]
        if self.used == slots:
            for name, more in zip(("keys", "values"), self.shape.empty(2 * slots, self.capacity), strict=True):
                more[:, :slots] = getattr(self, name)
                setattr(self, name, more)
        self.keys[:, self.used, : keys.shape[1]] = keys
        self.values[:, self.used, : values.shape[1]] = values
        self.used += 1
        return self.used - 1

    def remove(self, slot: int) -> None:
        """Frees a slot; the last one in use moves there."""
        self.used -= 1
        if slot != self.used:
            self.keys[:, slot] = self.keys[:, self.used]
            self.values[:, slot] = self.values[:, self.used]

    def read(self, slot: int, tokens: int) -> tuple[Tensor, Tensor]:
        """The keys and values of its first tokens, [layers, T, heads, width]."""
        return self.keys[:, slot, :tokens], self.values[:, slot, :tokens]


@dataclass(eq=False)
class Node:
    """Up to BLOCK tokens behind those of the nodes that lead here, and what has followed them.

    keys, values: [layers, BLOCK, heads, width]. siblings: the nodes among which it lies.
    """

    ids: tuple[int, ...]
    keys: Tensor
    values: Tensor
    siblings: dict[tuple[int, ...], Node] = field(repr=False)
    following: dict[tuple[int, ...], Node] = field(default_factory=dict, repr=False)


class Kept:
    """Keys and values of earlier requests, for those that begin alike: a tree of blocks for each adapter.

    What several begin with is there once. Where there is no room, the blocks not used for longest go, the last of a
    request first. A node that is used is moved to the end of `nodes`, and those that lead to it behind it, so that the
    first of `nodes` never has one following it. No sibling's tokens begin with those of another.

    Args:
        limit: bytes that they may take together.
    """

    def __init__(self, shape: Shape, limit: int) -> None:
        self.shape, self.limit = shape, limit
        self.capacity = limit // (BLOCK * shape.token_bytes)  # blocks
        self.nodes: OrderedDict[Node, None] = OrderedDict()
        self._first: dict[str | None, dict[tuple[int, ...], Node]] = {}
        self._free: list[tuple[Tensor, Tensor]] = []
        self._taken = 0  # blocks

    @property
    def bytes(self) -> int:
        """Taken from the system."""
        return self._taken * BLOCK * self.shape.token_bytes

    def find(self, adapter: str | None, ids: Sequence[int]) -> list[tuple[Node, int]]:
        """The nodes that hold most first tokens of `ids`, each with how many: never all, as one has to be computed."""
        found = self._follow(adapter, ids[:-1])
        self._used([node for node, _ in found])
        return found

    def keep(self, adapter: str | None, ids: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Takes in tokens [T] with keys and values [layers, T, heads, width]: those that are not there are copied."""
        ids = ids[: self.capacity * BLOCK]
        found = self._follow(adapter, ids)
        path = [node for node, _ in found]
        self._used(path)
        siblings = self._first.setdefault(adapter, {})
        for at in range(0, len(ids), BLOCK):
            part, place = tuple(ids[at : at + BLOCK]), at // BLOCK
            node, same = found[place] if place < len(found) else (None, 0)
            if node is None or same < len(part):
                if node is not None and same == len(node.ids):
                    del siblings[node.ids]  # it goes on
                    node.ids = part
                else:
                    node = Node(part, *self._block(), siblings)
                    path[place:] = [node]
                siblings[part] = node
                node.keys[:, : len(part)] = keys[:, at : at + len(part)]
                node.values[:, : len(part)] = values[:, at : at + len(part)]
            siblings = node.following
        self._used(path)

    def forget(self, adapter: str | None) -> None:
        nodes = list(self._first.pop(adapter, {}).values())
        for node in nodes:
            nodes += node.following.values()
            del self.nodes[node]
            self._free.append((node.keys, node.values))

    def _follow(self, adapter: str | None, ids: Sequence[int]) -> list[tuple[Node, int]]:
        found: list[tuple[Node, int]] = []
        siblings = self._first.get(adapter, {})
        for at in range(0, len(ids), BLOCK):
            part = tuple(ids[at : at + BLOCK])
            alike = [siblings[part]] if part in siblings else siblings.values()
            same, node = max(((common_prefix(n.ids, part), n) for n in alike), key=itemgetter(0), default=(0, None))
            if node is None or same == 0:
                break
            found.append((node, same))
            siblings = node.following if same == BLOCK else {}
        return found

    def _used(self, path: Sequence[Node]) -> None:
        for node in reversed(path):
            self.nodes[node] = None
            self.nodes.move_to_end(node)

    def _block(self) -> tuple[Tensor, Tensor]:
        """Room for a block: a free one, one of a new piece, or that of the node not used for longest."""
        size = BLOCK * self.shape.token_bytes
        more = min(self.capacity - self._taken, -(-PIECE // size))
        if not self._free and more > 0:
            keys, values = self.shape.empty(more, BLOCK)
            self._free += zip(keys.unbind(1), values.unbind(1), strict=True)
            self._taken += more
        if not self._free:
            oldest, _ = self.nodes.popitem(last=False)
            del oldest.siblings[oldest.ids]
            return oldest.keys, oldest.values
        return self._free.pop()
