"""The `luthier` command on a machine that runs short in the middle of a training.

    python limited.py file:BYTES STEP ARGUMENTS…      from that step on the system refuses longer files
    python limited.py fill:FILE STEP ARGUMENTS…       FILE takes all the room that is left on its disk
    python limited.py memory:BYTES STEP ARGUMENTS…    the process may take so much more memory than it uses now

STEP 0 is before the rehearsal, which takes place however much is free here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path
from typing import Any

from luthier.cli.main import main
from luthier.training.forecast.plan import Plan
from luthier.training.trainer import LuthierTrainer

_, limit, step, *arguments = sys.argv
kind, _, value = limit.partition(":")
original = LuthierTrainer.rehearse if step == "0" else LuthierTrainer.training_step
reached = False


def run_short() -> None:
    if kind == "file":
        _set(resource.RLIMIT_FSIZE, int(value))
    elif kind == "memory":
        gc.collect()
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _set(resource.RLIMIT_AS, held)
        _use_up_what_is_free()
        _set(resource.RLIMIT_AS, held + int(value))
    else:
        with contextlib.suppress(OSError), Path(value).open("wb", buffering=0) as ballast:
            while True:
                ballast.write(b"\0" * 4096)


def _use_up_what_is_free() -> None:
    """Takes what the C library holds and nobody uses: tens of megabytes at times, in which a small step would fit."""
    malloc = ctypes.CDLL(None).malloc
    malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    for size in (1 << power for power in range(26, 11, -1)):
        while malloc(size):
            pass


def _set(what: int, soft: int) -> None:
    resource.setrlimit(what, (soft, resource.getrlimit(what)[1]))


def limited(self: LuthierTrainer, *inputs: Any) -> Any:
    global reached
    if not reached and self.state.global_step == int(step):
        reached = True
        run_short()
    return original(self, *inputs)


setattr(LuthierTrainer, original.__name__, limited)
if step == "0":
    Plan.rehearses = True  # type: ignore[assignment, method-assign]
sys.argv = ["luthier", *arguments]
main()
