"""How a step is cut into micro-batches, and what is done where one of them does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luthier import console
from luthier.data.batches import micro_batches
from luthier.data.render import Example
from luthier.engine.engines import Engine
from luthier.errors import Problem, RunError

# How torch says that memory is used up where it has no exception of its own for it.
OUT_OF_MEMORY = (
    "can't allocate memory",  # CPU, Linux and macOS
    "not enough memory: you tried to allocate",  # CPU, Windows
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)
SMALLER = "set train.gradient_checkpointing: true, lower data.max_length, or take a smaller model"


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


class Cut:
    """Cuts the rows of a step by a budget of tokens, or into a number of parts. The gradient is the same however it is.

    Args:
        tokens: the budget of a micro-batch.
        parts: micro-batches of a step instead (`gradient_accumulation_steps`).
        asked: what of both the recipe asks for by name: that is obeyed, or refused where it does not fit.
        on_halved: told the new budget.
    """

    def __init__(
        self,
        tokens: int,
        parts: int | None = None,
        *,
        asked: str | None = None,
        on_halved: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        self.tokens, self.parts, self.asked, self.on_halved = tokens, parts, asked, on_halved

    def batches(self, examples: Sequence[Example], engine: Engine) -> list[list[Example]]:
        return micro_batches(examples, engine, budget=self.tokens, parts=self.parts)

    def dearest(self, examples: Sequence[Example], engine: Engine, batch_size: int) -> list[list[Example]]:
        """Micro-batches that no other one of the run exceeds by much: of the longest rows, and of the most labels."""
        found: list[list[Example]] = []
        for size, dear in ((lambda e: len(e.input_ids), engine.cost), (lambda e: e.num_labels, _labels)):
            rows = sorted(examples, key=size, reverse=True)[:batch_size]
            dearest = max(self.batches(rows, engine), key=dear)
            if dearest not in found:
                found.append(dearest)
        return found

    def halve(self, failed: Sequence[Example], engine: Engine) -> None:
        """After `failed` did not fit: half as many tokens at once. Raises RunError where that is not to be had."""
        tokens = engine.cost(failed)
        if len(failed) == 1:
            what = f"the memory does not hold this row alone ({tokens:,} tokens)"
            raise RunError(Problem(str(failed[0].source), what, SMALLER))
        if self.asked is not None:
            what = f"the memory does not hold a micro-batch of {len(failed)} rows ({tokens:,} tokens)"
            raise RunError(Problem(self.asked, what, f"leave it at auto, or {SMALLER}"))
        self.tokens = max(1, min(self.tokens, tokens) // 2)
        console.warn(
            f"out of memory with {tokens:,} tokens at once: micro-batches of {self.tokens:,} tokens from here on. "
            "The steps stay the same"
        )
        self.on_halved(self.tokens)


def _labels(batch: Sequence[Example]) -> int:
    return sum(example.num_labels for example in batch)
