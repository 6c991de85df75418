"""One token more for each running request: the forward passes behind the batcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.inference.adapters import Adapters


@dataclass(eq=False)
class Running:
    """A request being answered: its tokens so far, and how many of them lie in its cache.

    adapter: the one it is for, None for the base.
    """

    ids: list[int]
    adapter: str | None
    computed: int = 0
    cache: Any = field(default=None, repr=False)


class Decoder(Protocol):
    def begin(self, request: Running) -> int:
        """Takes a request up; how many of its tokens need not be computed."""
        ...

    def step(self, running: Sequence[Running]) -> tuple[list[Running], Tensor]:
        """Computes a part of what is not computed yet. The requests that a token can be chosen for, and for each of
        them the logits [R, vocabulary]."""
        ...

    def end(self, request: Running) -> None:
        """A request that gets no more tokens."""
        ...

    def forget(self, adapter: str) -> None:
        """An adapter that is no more."""
        ...


class OneByOne:
    """Each request by itself, with transformers' own cache: right for any model."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters

    def begin(self, request: Running) -> int:
        from transformers import DynamicCache

        request.cache = DynamicCache(config=self.adapters.model.config)
        return 0

    def step(self, running: Sequence[Running]) -> tuple[list[Running], Tensor]:
        return list(running), torch.cat([self._next(request) for request in running])

    def _next(self, request: Running) -> Tensor:
        new = torch.tensor([request.ids[request.computed :]], device=self.adapters.model.device)
        with self.adapters.only(request.adapter):
            output = self.adapters.model(input_ids=new, past_key_values=request.cache, use_cache=True, logits_to_keep=1)
        request.computed = len(request.ids)
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def end(self, request: Running) -> None:
        request.cache = None

    def forget(self, adapter: str) -> None:
        pass
