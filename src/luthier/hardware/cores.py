"""How many CPU cores this process may really use: affinity and container limits respected."""

from __future__ import annotations

import math
import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


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


def _siblings(cpu: int, topology: Path) -> str:
    try:
        return (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return ""


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """CPUs' worth of time that the container may use (cgroup v2 or v1); None without a limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except OSError:
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def usable_cores(cpus: list[int] | None = None, topology: Path = TOPOLOGY, cgroup: Path = CGROUP) -> int:
    """Physical cores this process can keep busy, at least one."""
    cores = physical_cores(allowed_cpus() if cpus is None else cpus, topology)
    quota = cpu_quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))
