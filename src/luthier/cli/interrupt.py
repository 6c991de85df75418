"""Ctrl-C, SIGTERM and SIGHUP end every command in the same way: tidied up, exit status 3, no traceback."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from luthier.errors import Problem, Stopped, Terminated


def interruptible(name: str, command: Callable[..., None]) -> Callable[..., None]:
    """The command, whose interruption is Stopped. `train` says itself what it has saved."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _terminated():
                command(*args, **kwargs)
        except (KeyboardInterrupt, Terminated) as stop:
            what = f"stopped by {str(stop) or 'Ctrl-C'}"
            raise Stopped(Problem(f"luthier {name}", what, "the same command does it again")) from None

    return run


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated, so that what is half done is tidied up."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python lets nobody set a handler
        numbers = []
    before = {number: signal.signal(number, _raise) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated(signal.Signals(number).name)
