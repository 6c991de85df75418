"""How a step is cut into micro-batches, and what is done where one of them does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from luthier import console
from luthier.data.batches import even_shares, micro_batches
from luthier.data.render import Example
from luthier.errors import Problem, RunError

if TYPE_CHECKING:
    from luthier.engine.engines import Engine  # which imports torch: not to refuse a wrong recipe
    from luthier.recipe.schema import TrainSettings

# How torch says that memory is used up where it has no exception of its own for it.
OUT_OF_MEMORY = (
    "can't allocate memory",  # CPU, Linux and macOS
    "not enough memory: you tried to allocate",  # CPU, Windows
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)
CUT_SETTINGS = ("micro_batch_tokens", "gradient_accumulation_steps")
STEPS_LOOKED_AT = 200
SMALLER = "set train.gradient_checkpointing: true, lower data.max_length, or take a smaller model"


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


class Cut:
    """Cuts the rows of a step by a budget of tokens, or into a number of parts. The gradient is the same however it is.

    Args:
        tokens: the budget of a micro-batch.
        parts: micro-batches of a step instead (`gradient_accumulation_steps`).
        processes: that compute a step together, each its share of the rows.
        asked: what of tokens and parts the recipe asks for by name: that is obeyed, or refused where it does not fit.
        on_halved: told the new budget.
    """

    def __init__(
        self,
        tokens: int,
        parts: int | None = None,
        *,
        processes: int = 1,
        asked: str | None = None,
        on_halved: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        self.tokens, self.parts, self.processes, self.asked = tokens, parts, processes, asked
        self.on_halved = on_halved

    @classmethod
    def of(cls, settings: TrainSettings, tokens: int, processes: int) -> Cut:
        """As a recipe has it; `tokens`, `processes`: what its `micro_batch_tokens` and `cpu_processes` came to."""
        accumulation = settings.gradient_accumulation_steps
        asked = next((f"train.{name}" for name in CUT_SETTINGS if getattr(settings, name) != "auto"), None)
        return cls(tokens, None if accumulation == "auto" else accumulation, processes=processes, asked=asked)

    def shares(self, examples: Sequence[Example], engine: Engine) -> list[list[list[Example]]]:
        """The micro-batches of each process: at most as many shares as there are processes, and at least one."""
        shares = even_shares(examples, engine, self.processes) if self.processes > 1 else [examples]
        return [micro_batches(share, engine, budget=self.tokens, parts=self.parts) for share in shares]

    def batches(self, examples: Sequence[Example], engine: Engine) -> list[list[Example]]:
        return [batch for share in self.shares(examples, engine) for batch in share]

    def dearest(
        self, examples: Sequence[Example], steps: Sequence[Sequence[int]], engine: Engine
    ) -> list[list[Example]]:
        """The micro-batches of most tokens and of most labels that `steps` and the longest rows give.

        No other one of the run exceeds them by much.
        """
        longest = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))[-max(map(len, steps)) :]
        some = [*steps[:STEPS_LOOKED_AT], longest]
        found = [batch for step in some for batch in self.batches([examples[i] for i in step], engine)]
        most_tokens = max(found, key=engine.cost)
        most_labels = max(found, key=lambda batch: sum(example.num_labels for example in batch))
        return [most_tokens] if most_tokens == most_labels else [most_tokens, most_labels]

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
