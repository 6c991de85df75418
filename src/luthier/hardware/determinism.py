"""Whether the same run gives the same bits, and having torch see to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from luthier.choice import Choice
from luthier.errors import Problem, RecipeError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACE_VALUE = ":4096:8"  # without it cuBLAS may choose another order of sums; docs.nvidia.com/cuda/cublas
NO_KERNEL = "does not have a deterministic implementation"


def pick_deterministic(device: str, *, asked: bool) -> Choice[bool]:
    """Raises RecipeError where it is asked for and cannot be had."""
    if device == "mps" and asked:
        what = "torch has no deterministic kernels for the Mac's GPU"
        raise RecipeError(Problem("train.deterministic", what, "set it to false, or model.device: cpu"))
    if device == "cpu":
        return Choice(True, "a CPU adds in the same order each time, with the same number of threads")
    if asked:
        return Choice(True, "the recipe asks for it; some kernels are slower")
    return Choice(False, "a GPU may add in another order each time; train.deterministic: true repeats every bit")


@contextlib.contextmanager
def deterministic(*, asked: bool) -> Iterator[None]:
    """torch's deterministic kernels, where they are asked for; afterwards everything is as it was."""
    import torch

    if not asked:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1], benchmark
