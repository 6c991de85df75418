"""Every command ends alike when it is interrupted."""

from __future__ import annotations

import os
import signal
import time

import pytest

from luthier.cli.interrupt import interruptible
from luthier.errors import Problem, Stopped


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")]
)
def test_an_interrupted_command_tidies_up_and_is_stopped(number: signal.Signals, name: str) -> None:
    tidied = []

    def merge() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            tidied.append(True)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    with pytest.raises(Stopped) as caught:
        interruptible("merge", merge)()
    problem = Problem("luthier merge", f"stopped by {name}", "the same command does it again")
    assert (caught.value.problems, caught.value.exit_status) == ((problem,), 3)
    assert tidied == [True]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before
