"""Copies of this process that compute a part of each step: on a CPU, threads of one process wait for each other.

Python starts one small operation after the other, and a core that has done its part of one waits for the next.
Processes with fewer threads each have a part of the step's rows, and wait once a step. They are forked, so they share
the weights; what is learned lies in memory that all of them see, and each leaves its gradient in a place of its own
there.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.data.render import Example
from luthier.hardware.memory import own_peak_bytes, peak_bytes, release
from luthier.hardware.threads import release_threads, with_threads
from luthier.training.cut import is_out_of_memory

Batches = Sequence[Sequence[Example]]
LOOKS_EVERY = 0.2  # seconds between two questions whether to stop
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if sys.platform != "win32" else ()


class WorkerDied(MemoryError):
    """A worker's process was ended from outside; nearly always by a system that had no memory left."""


class Workers:
    """The other processes of a run. They begin when they are first needed, and are ended by `close`.

    Args:
        learned: the weights that a step changes in place; they are moved to memory that processes share.
        count: processes besides this one.
        threads: of each process, this one too.
        compute: forward and backward of micro-batches, each loss times a weight, or without a weight forward alone;
            returns the sum of the losses.
    """

    def __init__(
        self, learned: Sequence[Tensor], count: int, threads: int, compute: Callable[[Batches, float | None], float]
    ) -> None:
        self.learned, self.count, self.threads, self.compute = list(learned), count, threads, compute
        for parameter in self.learned:
            shared = _shared(parameter.numel(), parameter.dtype).view_as(parameter)
            parameter.data = shared.copy_(parameter.data)
        self._places = [parameter.data_ptr() for parameter in self.learned]
        self._gradients = [[_shared(p.numel(), p.dtype).view_as(p) for p in self.learned] for _ in range(count)]
        self._running: list[tuple[Any, Connection]] = []
        self.peak_bytes = 0
        """The most that all of them held beside what they share with this process."""

    @contextlib.contextmanager
    def beside(
        self, shares: Sequence[Batches], weight: float | None, look: Callable[[], object]
    ) -> Iterator[list[float]]:
        """Lets each worker compute a share while the caller computes its own; the losses are there at the end.

        With a weight their gradients are added to those of the learned weights, and what a worker drops follows from
        random numbers that are drawn here. If the caller or `look`, which is called while they are waited for, raises,
        they are ended.

        Raises MemoryError where a worker has too little, RuntimeError with its traceback where it failed otherwise.
        """
        losses: list[float] = []
        try:
            self._start()
            busy = self._running[: len(shares)]
            for (process, pipe), share in zip(busy, shares, strict=True):
                with _alive(process):
                    pipe.send((share, weight, 0 if weight is None else int(torch.randint(1 << 62, ()))))
            with with_threads(self.threads):
                yield losses
            losses += self._collect(busy, look)
            if weight is not None:
                self._add_gradients(len(busy))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends them, whatever they are at. They have nothing to save."""
        for process, pipe in self._running:
            process.kill()
            process.join()
            pipe.close()
        self._running = []

    def _start(self) -> None:
        if [parameter.data_ptr() for parameter in self.learned] != self._places:
            raise RuntimeError("a learned weight was replaced, which the processes of this run would not see")
        if self._running:
            return
        release_threads()  # a forked process has none of them, and would wait for them
        release()  # or a worker writes into what this process has freed, and its memory is not seen to grow
        forked = multiprocessing.get_context("fork")
        for number in range(self.count):
            here, there = forked.Pipe()
            process = forked.Process(target=self._work, args=(number, here, there), daemon=True)
            with warnings.catch_warnings():
                # Of threads that hold a lock when it forks: a worker computes, and takes none of the display's.
                warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
                process.start()
            there.close()
            self._running.append((process, here))

    def _collect(self, busy: Sequence[tuple[Any, Connection]], look: Callable[[], object]) -> list[float]:
        """Waits for these; their losses in order."""
        waiting = {pipe: process for process, pipe in busy}
        answers: dict[Any, tuple[float, int]] = {}
        while waiting:
            for pipe in wait(list(waiting), LOOKS_EVERY):
                answers[pipe] = self._answer(waiting.pop(pipe), pipe)  # type: ignore[arg-type, call-overload]
            look()
        self.peak_bytes = max(self.peak_bytes, sum(peak for _, peak in answers.values()))
        return [answers[pipe][0] for _, pipe in busy]

    def _add_gradients(self, count: int) -> None:
        """Those of the first `count` workers, in order."""
        for gradients in self._gradients[:count]:
            for parameter, gradient in zip(self.learned, gradients, strict=True):
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)

    @staticmethod
    def _answer(process: Any, pipe: Connection) -> tuple[float, int]:
        with _alive(process):
            loss, peak, error = pipe.recv()
        if isinstance(error, MemoryError):
            raise error
        if error is not None:
            raise RuntimeError(error)
        return loss, peak

    # --- in a worker ----------------------------------------------------------------------------------------

    def _work(self, number: int, parents: Connection, pipe: Connection) -> None:
        """The life of a worker: until the process it was forked from is gone."""
        parents.close()  # or it would hold its own pipe open
        for each in IGNORED:
            signal.signal(each, signal.SIG_IGN)  # this run's first process decides when to stop
        silent = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  as long as it lives
        sys.stdout = sys.stderr = silent  # the screen is the first process's
        torch.set_num_threads(self.threads)
        highest = own = 0
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                loss, error = self._computed(self._gradients[number], *pipe.recv())
                if (now := peak_bytes("cpu")) > highest:  # a look at one's own part takes milliseconds
                    highest, own = now, max(own, own_peak_bytes())
                pipe.send((loss, own, error))

    def _computed(
        self, gradients: Sequence[Tensor], share: Batches, weight: float | None, seed: int
    ) -> tuple[float, MemoryError | str | None]:
        torch.default_generator.manual_seed(seed)
        loss, error = 0.0, None
        try:
            loss = self.compute(share, weight)
            for parameter, gradient in zip(self.learned, gradients, strict=True):
                if weight is not None:
                    gradient.zero_() if parameter.grad is None else gradient.copy_(parameter.grad)
        except Exception as caught:
            out = is_out_of_memory(caught)
            error = MemoryError(str(caught)) if out else "".join(traceback.format_exception(caught))
        for parameter in self.learned:
            parameter.grad = None
        return loss, error


@contextlib.contextmanager
def _alive(process: Any) -> Iterator[None]:
    """Raises WorkerDied where the other end of its pipe is gone."""
    try:
        yield
    except (EOFError, ConnectionError):
        process.join()
        raise WorkerDied(f"a process of this run was ended from outside (exit code {process.exitcode})") from None


def _shared(count: int, dtype: torch.dtype) -> Tensor:
    """[count], zeros, in memory that forked processes see too; not of /dev/shm, of which containers have little."""
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype, count=count)
