"""Keys and values of tokens: a request's own, those of many requests side by side, and those kept for later ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from luthier.engine.layout import common_prefix


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


@dataclass(frozen=True)
class Entry:
    """The keys and values [layers, T, heads, width] of tokens [T] under an adapter."""

    adapter: str | None
    ids: list[int]
    keys: Tensor
    values: Tensor

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class Kept:
    """Keys and values of earlier requests, for those that begin alike. The ones not used for longest go first.

    Args:
        limit: bytes that they may take together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: list[Entry] = []  # the latest used last

    def find(self, adapter: str | None, ids: Sequence[int]) -> tuple[int, Entry | None]:
        """The entry that shares most first tokens with `ids`, and how many: never all, as one has to be computed."""
        found = [(min(common_prefix(e.ids, ids), len(ids) - 1), e) for e in self.entries if e.adapter == adapter]
        shared, entry = max(found, key=lambda pair: pair[0], default=(0, None))
        if entry is None or shared == 0:
            return 0, None
        self.entries.remove(entry)
        self.entries.append(entry)
        return shared, entry

    def keep(self, new: Entry) -> None:
        """Takes an entry in, in place of those that it goes on from."""
        same = [e for e in self.entries if e.adapter == new.adapter]
        if new.bytes > self.limit or any(common_prefix(e.ids, new.ids) == len(new.ids) for e in same):
            return
        for entry in same:
            if common_prefix(entry.ids, new.ids) == len(entry.ids):
                self.entries.remove(entry)
        self.entries.append(new)
        while sum(entry.bytes for entry in self.entries) > self.limit:
            self.entries.pop(0)

    def forget(self, adapter: str | None) -> None:
        self.entries = [entry for entry in self.entries if entry.adapter != adapter]
