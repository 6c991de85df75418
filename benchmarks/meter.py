"""Times a transformers Trainer and counts what it trains, in the same way for every contender that has one."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.task import IGNORE, Result, Task

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl", "llamafactory", "unsloth", "liger-kernel", "luthier")


class Meter(TrainerCallback):  # type: ignore[misc]
    """The wall time from the end of the warm-up step to the end of the last one, and all that was trained between.

    meter = Meter(task)
    Trainer(…, callbacks=[meter]).train()
    return meter.result(same_labels=True)
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.batches: list[tuple[int, int, int]] = []  # rows, tokens and labels of each micro-batch

    def on_train_begin(self, args: Any, state: Any, control: Any, *, train_dataloader: Any, **_: Any) -> None:
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)  # accelerate wraps it
        loader.collate_fn = self._counting(loader.collate_fn)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.task.device != "cpu":
            torch.accelerator.synchronize()
        self.ends.append(time.perf_counter())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.losses = [float(entry["loss"]) for entry in state.log_history if "loss" in entry]

    def _counting(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counting(rows: Sequence[Any]) -> Any:
            batch = collate(rows)
            self.batches.append(count(batch))
            return batch

        return counting

    def result(self, *, same_labels: bool, notes: Sequence[str] = ()) -> Result:
        each_step = len(self.batches) // len(self.ends)
        rows, tokens, labelled = (sum(part) for part in zip(*self.batches[each_step:], strict=True))
        return Result(
            seconds=self.ends[-1] - self.ends[0],
            rows=rows,
            tokens=tokens,
            labelled=labelled,
            losses=self.losses,
            peak_bytes=peak_bytes(self.task.device),
            same_labels=same_labels,
            notes=list(notes),
            versions=versions(),
        )


def count(batch: Any) -> tuple[int, int, int]:
    """Rows, real tokens and learned labels of a collated batch, padded (`[B, T]`) or flat (`[1, N]`)."""
    labelled = int((batch["labels"][:, 1:] != IGNORE).sum())
    if "attention_mask" in batch:
        return len(batch["input_ids"]), int(batch["attention_mask"].sum()), labelled
    return int((batch["position_ids"] == 0).sum()), batch["input_ids"].numel(), labelled


def peak_bytes(device: str) -> int:
    """The most memory this process held: on the GPU where it computes there, else in RAM."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":  # unlike ru_maxrss, this does not begin with what the parent process held
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
