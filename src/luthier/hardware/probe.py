"""The machine's facts. Imports no torch: what torch makes of the machine is in compute.py and facts.py."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.hardware.cgroup import Cgroups
from luthier.hardware.cores import allowed_cpus, usable_cores
from luthier.hardware.gpus import find_gpus
from luthier.hardware.parse import Gpu

# Those that decide how fast torch multiplies, under the names that Linux, macOS and Windows give them.
INSTRUCTIONS = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_bf16": "amx_bf16",
    "amx_tile": "amx_tile",
    "asimd": "neon",
    "neon": "neon",
    "bf16": "bf16",
    "sve": "sve",
}


@dataclass(frozen=True)
class Hardware:
    """Sizes in bytes. `cores` are the physical cores this process may use; memory respects a container's limit."""

    system: str  # as platform.system(): "Linux", "Windows", "Darwin"
    os: str
    python: str
    cpu: str
    cores: int
    threads: int
    instructions: tuple[str, ...]
    memory_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    gpus: tuple[Gpu, ...]
    gtt_limit_bytes: int = 0  # Linux's ceiling for GPU memory in main memory (TTM pages_limit); 0 where there is none

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def probe(folder: Path = Path()) -> Hardware:
    """This machine; free disk is that of `folder`."""
    import psutil

    cpu, flags = _cpu()
    cpus, cgroups, memory = allowed_cpus(), Cgroups(), psutil.virtual_memory()
    limit, room = cgroups.memory_room() or (memory.total, memory.available)
    return Hardware(
        system=platform.system(),
        os=_os_name(),
        python=platform.python_version(),
        cpu=cpu,
        cores=usable_cores(cpus, cgroups.cpu_quota()),
        threads=len(cpus),
        instructions=instructions_that_matter(flags),
        memory_bytes=min(memory.total, limit),
        memory_available_bytes=min(memory.available, room),
        disk_free_bytes=shutil.disk_usage(folder).free,
        gpus=find_gpus(),
        gtt_limit_bytes=_gtt_limit(),
    )


def instructions_that_matter(flags: Iterable[str]) -> tuple[str, ...]:
    found = {flag.lower() for flag in flags}
    return tuple(dict.fromkeys(name for flag, name in INSTRUCTIONS.items() if flag in found))


def read_cpuinfo(text: str) -> tuple[str, list[str]]:
    """(name, flags) from `/proc/cpuinfo`, of x86 (`model name`, `flags`) or ARM (`Features`)."""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    return facts.get("model name", ""), facts.get("flags", facts.get("Features", "")).split()


def cpu_name() -> str:
    return _cpu()[0]


def _cpu() -> tuple[str, list[str]]:
    if sys.platform == "linux":
        name, flags = read_cpuinfo(Path("/proc/cpuinfo").read_text())
        return name or platform.machine(), flags
    from cpuinfo import get_cpu_info

    facts = get_cpu_info()
    return facts.get("brand_raw", platform.processor()), facts.get("flags", [])


def _os_name() -> str:
    if sys.platform == "linux":
        try:
            return (
                f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()} {platform.machine()}"
            )
        except (OSError, KeyError):
            return platform.platform()
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    return f"{platform.system()} {platform.release()} ({platform.version()}) {platform.machine()}"


def _gtt_limit(module: Path = Path("/sys/module/ttm/parameters/pages_limit")) -> int:
    try:
        return int(module.read_text()) * 4096
    except (OSError, ValueError):
        return 0
