"""What can go wrong in the middle of a run through no mistake of Luthier, in words and with a way on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from luthier.errors import LuthierError, Problem, RecipeError, RunError, Stopped
from luthier.hardware.determinism import NO_KERNEL
from luthier.report import disk
from luthier.report.record import RunFolder
from luthier.training.cut import SMALLER, is_out_of_memory

GOES_ON = "the same command goes on from the last checkpoint"


@contextlib.contextmanager
def in_words(run: RunFolder) -> Iterator[None]:
    """A full disk, used up memory and a kernel that is not deterministic become errors that say what to do."""
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        known = explained(error, run)
        if known is None:
            raise
        raise known from error


def explained(error: Exception, run: RunFolder) -> LuthierError | None:
    """The error as the user should read it; None for a mistake of Luthier's, whose traceback is wanted."""
    if disk.is_full(error):
        what = f"{disk.fullness(error, run.path)}. What was saved before is whole"
        return Stopped(Problem(str(run.path), what, f"make room there: {GOES_ON}"))
    if is_out_of_memory(error):
        return RunError(Problem(str(run.path), "the memory does not hold this training", f"{SMALLER}; {GOES_ON}"))
    if NO_KERNEL in str(error):
        what = str(error).partition(".")[0]
        return RecipeError(Problem("train.deterministic", what, "set train.engine: plain, or deterministic: false"))
    return None
