"""transformers' Trainer, without what its steps wait for.

A step of a small model takes a GPU some 40 ms. To walk through all of a model's modules takes the processor 4 to 6 ms
each time, and to read a loss before the next step is queued leaves the GPU without work until that is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from luthier.training.guard import read_later


@dataclass(frozen=True)
class _LateLog:
    """What is logged of a step once its loss and its gradient's norm, which `read` gives, are there."""

    step: int
    epoch: float
    steps: int
    learning_rate: float
    counted: tuple[int, int, int]
    read: Callable[[], list[float]]


class Loop(Trainer):  # type: ignore[misc]
    """Of a model whose learned weights stay the same objects.

    reads_late: whether a step is logged when the next one is queued; set by who knows the device.
    trained_tokens, computed_tokens, trained_labels: in this process; counted by who computes them.
    """

    control: Any
    _globalstep_last_logged: int

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.learned = [p for p in model.parameters() if p.requires_grad]
        self.reads_late = False
        self.trained_tokens = self.computed_tokens = self.trained_labels = 0
        self._late: _LateLog | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer does, but for its `zero_grad`, which would walk through all modules at each step."""
        self.model.zero_grad = self._forget_gradients
        try:
            return super().train(*args, **kwargs)
        finally:
            del self.model.zero_grad

    def _forget_gradients(self, set_to_none: bool = True) -> None:
        for parameter in self.learned:
            parameter.grad = None

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.accelerator.clip_grad_norm_(self.learned, self.args.max_grad_norm)

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """On a GPU a step is logged when the next one is queued: to read its loss at once would wait for it."""
        self._write_late_log()
        control, step = self.control, self.state.global_step
        ends = control.should_evaluate or control.should_save or control.should_training_stop
        if self.reads_late and control.should_log and not ends and step < self.state.max_steps:
            read = read_later(torch.stack([tr_loss, torch.as_tensor(grad_norm, device=tr_loss.device)]))
            rate = kwargs.get("learning_rate") or self._get_learning_rate()
            since = step - self._globalstep_last_logged
            self._late = _LateLog(step, self.state.epoch, since, rate, self.counted, read)
            self._globalstep_last_logged, control.should_log = step, False
        else:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)
        if self._globalstep_last_logged == step:
            self._tr_loss.zero_()  # the Trainer subtracts the sum from itself, which leaves a NaN a NaN for ever

    def _write_late_log(self) -> None:
        if self._late is None:
            return
        late, state, asked = self._late, self.state, self.control.should_log
        now = state.global_step, state.epoch
        loss, norm = late.read()
        self._total_loss_scalar += loss
        state.global_step, state.epoch = late.step, late.epoch
        self.log({"loss": loss / late.steps, "grad_norm": norm, "learning_rate": late.learning_rate})
        (state.global_step, state.epoch), self.control.should_log, self._late = now, asked, None

    @property
    def counted(self) -> tuple[int, int, int]:
        """Tokens trained, computed and labelled in this process, up to the step that is logged."""
        late = self._late
        return (self.trained_tokens, self.computed_tokens, self.trained_labels) if late is None else late.counted

    @property
    def logs_late(self) -> bool:
        """Whether the next step is computed already while this one is logged."""
        return self._late is not None
