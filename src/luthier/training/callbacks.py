"""What happens beside the training loop: events for the run folder and the screen, and an orderly stop."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from luthier.hardware.memory import peak_bytes
from luthier.report.events import SCHEMA, Event, Plan
from luthier.training.utilization import Utilization

Emit = Callable[[Event], None]


class Events(TrainerCallback):  # type: ignore[misc]
    """Turns the Trainer's callbacks into the events of events.jsonl.

    `counted()` gives the tokens trained, computed and labelled so far, in this process; `logs_late()` whether the step
    behind the one that is logged has begun; `evaluated_in()` the seconds of the last evaluation; `beside()` the bytes
    that other processes of this run took at most.
    """

    def __init__(
        self, emit: Emit, device: str, *, resumed: bool, plan: Plan | None, utilization: Utilization | None
    ) -> None:
        self.emit, self.device, self.resumed, self.plan, self.utilization = emit, device, resumed, plan, utilization
        self.counted: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0)
        self.logs_late: Callable[[], bool] = lambda: False
        self.evaluated_in: Callable[[], float] = lambda: 0.0
        self.beside: Callable[[], int] = lambda: 0
        self._began: float | None = None  # what is logged next
        self._tokens = self._computed = self._labels = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.emit(
            {
                "event": "start",
                "step": state.global_step,
                "schema": SCHEMA,
                "total_steps": state.max_steps,
                "resumed": self.resumed,
                "flops_per_second": None if self.utilization is None else self.utilization.rate,
            }
        )
        if self.plan is not None:
            self.emit(self.plan)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._began is None:
            self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_evaluate or control.should_save:
            control.should_log = True  # so that the sums over a run's sessions miss no step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        counted, now = self.counted(), time.perf_counter()
        busy = 0.0 if self._began is None else now - self._began
        tokens, computed, labels = (
            now - then for now, then in zip(counted, (self._tokens, self._computed, self._labels), strict=True)
        )
        self.emit(
            {
                "event": "step",
                "step": state.global_step,
                "epoch": round(state.epoch, 4),
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs.get("grad_norm"),
                "tokens": tokens,
                "computed_tokens": computed,
                "seconds": busy,
                "tokens_per_second": tokens / busy if busy else 0.0,
                "mfu": None if self.utilization is None else self.utilization.share(computed, labels, busy),
                "memory_bytes": peak_bytes(self.device) + self.beside(),
            }
        )
        self._began = now if self.logs_late() else None
        self._tokens, self._computed, self._labels = counted

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        loss, seconds = metrics["eval_loss"], self.evaluated_in()
        self.emit({"event": "evaluation", "step": state.global_step, "heldout_loss": loss, "seconds": seconds})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        path = f"checkpoints/checkpoint-{state.global_step}"
        self.emit({"event": "save", "step": state.global_step, "path": path})


class OrderlyStop(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C, SIGTERM and SIGHUP end the training after the micro-batch in progress, with a checkpoint of the last
    finished step.

    A second Ctrl-C stops at once. `reason` is what stopped it, or None. A context manager: signals are the process's.
    """

    SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.reason: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> OrderlyStop:
        import threading

        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody set a handler
            for name in self.SIGNALS:
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            raise KeyboardInterrupt
        self.reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        with contextlib.suppress(RuntimeError):  # a stream that is just being written to refuses
            self.say(f"{self.reason}: saving the last finished step (once more to stop at once)")

    def asked(self) -> bool:
        return self.reason is not None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.reason is not None:
            control.should_log = control.should_save = control.should_training_stop = True
