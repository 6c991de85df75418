"""The CPU threads that torch computes with, while a process runs. How many there should be: `compute.pick_threads`."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    """So many of them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def release_threads() -> None:
    """Ends the idle OpenMP threads that the calling thread keeps for its own products; they come again when needed.

    GNU's OpenMP, which PyTorch brings on Linux, counts those of all threads of a process. Where they are more than the
    cores, it lets them sleep between any two products: half the speed for the thread that has something to compute.
    """
    import torch

    soft = 1  # omp_pause_soft
    for library in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        if (pause := getattr(ctypes.CDLL(str(library)), "omp_pause_resource_all", None)) is not None:
            pause(soft)
