"""How many CPU cores this process may really use: affinity and container limits respected."""

from __future__ import annotations

import math
import os
from pathlib import Path

from luthier.hardware.cgroup import Cgroups

TOPOLOGY = Path("/sys/devices/system/cpu")


def allowed_cpus() -> list[int]:
    """Numbers of the hardware threads that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores(cpus: list[int], topology: Path = TOPOLOGY) -> int:
    """Cores behind those hardware threads: two hyper-threads of one core count once."""
    siblings = {_siblings(cpu, topology) for cpu in cpus} - {""}
    if siblings:
        return len(siblings)
    import psutil

    return min(psutil.cpu_count(logical=False) or len(cpus), len(cpus))


def usable_cores(cpus: list[int], quota: float | None, topology: Path = TOPOLOGY) -> int:
    """Physical cores this process can keep busy, at least one. `quota` as from `cpu_quota()`."""
    cores = physical_cores(cpus, topology)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota() -> float | None:
    """CPUs' worth of time that the container or slice of this process may use; None without a limit."""
    return Cgroups().cpu_quota()


def _siblings(cpu: int, topology: Path) -> str:
    try:
        return (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return ""
