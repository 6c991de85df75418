"""How much memory this process took and how much is left."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def peak_bytes(device: str) -> int:
    """The most memory this process held so far: on the GPU where it computes there, else in RAM."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS


def resident_bytes() -> int:
    """What this process holds in RAM now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def own_peak_bytes() -> int:
    """The most that this process held beside what it shares with others, as a forked one does (Linux).

    What it holds for itself now, and as much more as all that it held was more before: the system keeps no peak of
    either part.
    """
    import psutil

    now = psutil.Process().memory_full_info()
    return int(now.uss + peak_bytes("cpu") - now.rss)


def available_bytes(device: str) -> int:
    """Memory that can still be taken on the device."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    import psutil

    from luthier.hardware.cgroup import Cgroups

    free = int(psutil.virtual_memory().available)
    room = Cgroups().memory_room()
    return free if room is None else min(free, room[1])


def release() -> None:
    """Gives the system back what was freed: glibc keeps blocks below 32 MB. Elsewhere it does nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
