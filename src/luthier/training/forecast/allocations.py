"""What a step allocates, counted tensor by tensor on torch's meta device: shapes and lifetimes, and no memory.

The step is the real one: the model's own code, the engine's routines, autograd. A comparison of two such tensors, which
hold no values, is answered as if they were the same: so every fast path passes its check, as it does on a real model.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while it is entered, the bytes of all tensors on the meta device but the `known` ones.

    `now` are alive, `peak` were at most, `wide_at_peak` of those belong to tensors whose last axis is `wide` long (the
    vocabulary: logits).
    """

    def __init__(self, known: Iterable[Tensor] = (), wide: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.wide_at_peak = 0
        self._wide, self._wide_now = wide, 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype is torch.bool else 0
        if func is torch.ops.aten.allclose.default and args[0].is_meta:
            return True
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.is_meta:
                self._count(made)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        wide = size if tensor.dim() > 1 and tensor.shape[-1] == self._wide else 0
        self._seen.add(key)
        weakref.finalize(storage, self._forget, key, size, wide)
        self.now += size
        self._wide_now += wide
        if self.now > self.peak:
            self.peak, self.wide_at_peak = self.now, self._wide_now

    def _forget(self, key: int, size: int, wide: int) -> None:
        self._seen.discard(key)
        self.now -= size
        self._wide_now -= wide
