"""A loss or gradient that is not a number never reaches the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from luthier import console
from luthier.data.render import Example
from luthier.engine.engines import Engine
from luthier.engine.instance import evaluating
from luthier.errors import CheckFailed, Problem

MOST_SKIPPED = 3  # steps one after another
MOST_OVERFLOWS = 20  # of float16's loss scaling, which halves its factor each time: 65536 is 1 after 16
ROWS_NAMED = 5


class Guard:
    """Looks at each step before it is applied, and raises CheckFailed when too many in a row cannot be.

    `on_skip(step, reason, rows)` is told of each one.
    """

    def __init__(self, on_skip: Callable[[int, str, list[str]], None] = lambda step, reason, rows: None) -> None:
        self.on_skip = on_skip
        self._skipped = self._overflows = 0

    def passes(self, step: int, losses_finite: bool, gradient_finite: bool, *, scaled: bool) -> bool:
        """Whether the step may be applied, before its rows are looked for.

        Args:
            scaled: float16, whose scaler finds an overflowing gradient and leaves the step out by itself.
        """
        if losses_finite and (gradient_finite or scaled):
            self._skipped = 0
            self._overflows = 0 if gradient_finite else self._overflows + 1
            if self._overflows >= MOST_OVERFLOWS:
                what = f"float16 overflowed in {self._overflows} steps one after another, up to step {step}"
                raise CheckFailed(Problem("model.dtype", what, "set model.dtype: bfloat16 or float32"))
            return True
        self._skipped += 1
        return False

    def skip(self, step: int, reason: str, rows: Sequence[str]) -> None:
        """Names the rows of a step that is not applied. Raises CheckFailed after some of them."""
        named = ", ".join(rows[:ROWS_NAMED]) + (f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else "")
        console.warn(f"step {step}: {reason}, so it is not applied. Rows: {named}")
        self.on_skip(step, reason, list(rows))
        if self._skipped >= MOST_SKIPPED:
            what = f"{reason} in {self._skipped} steps one after another: the training has diverged"
            fix = "mend or remove the rows named above, or lower train.learning_rate, and train again with --fresh"
            raise CheckFailed(Problem(f"step {step}", what, fix))


def finite(loss: torch.Tensor, learned: Sequence[torch.Tensor]) -> torch.Tensor:
    """[2] float32 on the device: 1 where the loss, and the gradient, is a finite number. Waits for nothing."""
    gradients = [p.grad for p in learned if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).to(loss.device)
    return torch.stack([loss.isfinite(), norm.isfinite()]).float()


def read_later(values: torch.Tensor) -> Callable[[], list[float]]:
    """What reads them once they are there: on a GPU without waiting for what was queued after them."""
    if not values.is_cuda:
        here = values.tolist()
        return lambda: here
    host = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return host.tolist()  # type: ignore[no-any-return]

    return read


def rows_without_loss(model: Any, engine: Engine, examples: Sequence[Example]) -> list[str]:
    """The rows whose loss, each computed alone, is not finite; all of them where it is none alone."""
    with evaluating(model), torch.no_grad():
        found = [str(e.source) for e in examples if not bool(engine.loss_sum(model, [e]).isfinite())]
    return list(dict.fromkeys(found or [str(e.source) for e in examples]))
