"""One token more for each running request: what the batcher asks of the forward passes, and the plain way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.engine.instance import takes_logits_to_keep
from luthier.inference.adapters import Adapters


@dataclass(eq=False)
class Running:
    """A request being answered.

    ids: its tokens so far. adapter: the one it is for, None for the base. computed: tokens whose keys and values are in
    its cache. reused: those of its prompt that an earlier request had computed.
    """

    ids: list[int]
    adapter: str | None
    computed: int = 0
    reused: int = 0
    cache: Any = field(default=None, repr=False)


class Decoder(Protocol):
    def step(self, running: Sequence[Running]) -> tuple[list[Running], Tensor]:
        """Computes some of what is not computed yet. The requests that a token can be chosen for, and for each of them
        the logits [R, vocabulary]."""
        ...

    def end(self, request: Running, *, keep: bool) -> None:
        """Frees what a request holds. keep: later requests may begin with its tokens."""
        ...

    def forget(self, adapter: str | None) -> None:
        """What is kept for an adapter."""
        ...

    def refresh(self) -> None:
        """The model has other adapters now."""
        ...

    def close(self) -> None:
        """Gives the model back as it was."""
        ...


class OneByOne:
    """Each request by itself, with transformers' own cache: right for any model."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters
        self._options = {"logits_to_keep": 1} if takes_logits_to_keep(adapters.model) else {}

    def step(self, running: Sequence[Running]) -> tuple[list[Running], Tensor]:
        return list(running), torch.cat([self._next(request) for request in running])

    def _next(self, request: Running) -> Tensor:
        from transformers import DynamicCache

        model = self.adapters.model
        if request.cache is None:
            request.cache = DynamicCache(config=model.config)
        new = torch.tensor([request.ids[request.computed :]], device=model.device)
        with self.adapters.only(request.adapter):
            output = model(input_ids=new, past_key_values=request.cache, use_cache=True, **self._options)
        request.computed = len(request.ids)
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def end(self, request: Running, *, keep: bool) -> None:
        request.cache = None

    def forget(self, adapter: str | None) -> None:
        pass

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass
