"""Which GPUs this machine has, asked of its drivers. Standard library only: `start.py` uses it too."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from luthier.hardware import parse
from luthier.hardware.parse import Gpu
from luthier.hardware.torch_builds import load_table

NVIDIA_SMI = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
WINDOWS_ADAPTERS = ["powershell", "-NoProfile", "-Command", "(Get-CimInstance Win32_VideoController).Name"]


def find_gpus() -> tuple[Gpu, ...]:
    """NVIDIA's, then AMD's, then Apple's. An AMD GPU whose chip no tool names has an empty `target`."""
    return (*parse.nvidia_smi(output_of(NVIDIA_SMI)), *find_amd_gpus(), *_apple_gpus())


def find_amd_gpus() -> list[Gpu]:
    """On Linux from the kernel (no ROCm needed), under WSL from rocminfo, on Windows from hipinfo or clinfo."""
    if platform.system() == "Windows":
        tools: list[tuple[list[str], Callable[[str], list[Gpu]]]] = [
            (["hipinfo"], parse.hipinfo),
            (["clinfo"], parse.clinfo),
        ]
    else:
        tools = [(["amd-smi", "static", "--json"], parse.amd_smi), (["rocminfo"], parse.rocminfo)]
    gpus = kfd_gpus()
    for command, read in tools:
        with contextlib.suppress(
            ValueError, KeyError, TypeError, AttributeError
        ):  # a format unknown to us: ask the next tool
            gpus = _described(gpus, read(output_of(command)))
        if gpus and all(gpu.name and gpu.target for gpu in gpus):
            break
    unified = {gfx for gfx, facts in load_table()["gfx"].items() if facts["unified"]}
    known = [replace(g, name=g.name or f"AMD GPU ({g.target})", unified=g.unified or g.target in unified) for g in gpus]
    return known or _unnamed_amd_gpus()


def kfd_gpus(sys_class: Path = Path("/sys/class")) -> list[Gpu]:
    """GPUs of the amdgpu kernel driver, with gfx target and memory, from sysfs."""
    gpus = []
    for node in sorted((sys_class / "kfd/kfd/topology/nodes").glob("*"), key=lambda node: int(node.name)):
        with contextlib.suppress(OSError):
            facts = parse.kfd_properties((node / "properties").read_text())
            if facts.get("gfx_target_version"):
                gpus.append(_kfd_gpu(facts, sys_class))
    return gpus


def output_of(command: list[str], timeout: float = 10) -> str:
    """What the tool prints; "" if it is not there, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _kfd_gpu(facts: dict[str, int], sys_class: Path) -> Gpu:
    target = parse.gfx_name(facts["gfx_target_version"])
    unified = bool(load_table()["gfx"].get(target, {}).get("unified"))
    device = sys_class / f"drm/renderD{facts.get('drm_render_minor', 0)}/device"
    # With unified memory torch allocates from the larger of the carve-out and the GTT pool:
    # AMD's "RDNA3.5 system optimization".
    pools = ["mem_info_vram_total", "mem_info_gtt_total"] if unified else ["mem_info_vram_total"]
    return Gpu("", "amd", target, max(_number(device / pool) for pool in pools), unified)


def _described(gpus: list[Gpu], told: list[Gpu]) -> list[Gpu]:
    """The kernel's facts with the names and drivers that a tool tells; the tool's alone where the kernel is silent."""
    if not gpus:
        return told
    if [gpu.target for gpu in gpus] != [gpu.target for gpu in told]:
        return gpus
    return [replace(g, name=g.name or t.name, driver=g.driver or t.driver) for g, t in zip(gpus, told, strict=True)]


def _unnamed_amd_gpus() -> list[Gpu]:
    """AMD GPUs that are plugged in but that no driver or tool describes: named, so that nobody wonders."""
    if platform.system() == "Windows":
        names = output_of(WINDOWS_ADAPTERS).splitlines()
        return [Gpu(name.strip(), "amd") for name in names if re.search(r"\bAMD\b|Radeon", name)]
    cards = Path("/sys/class/drm").glob("card*/device/vendor")
    return [Gpu("AMD GPU", "amd") for card in cards if _text(card) == "0x1002" and card.parents[1].name.isalnum()]


def _apple_gpus() -> list[Gpu]:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = output_of(["sysctl", "-n", "machdep.cpu.brand_string"]).strip() or "Apple"
    return [Gpu(f"{name} GPU", "apple", "mps", memory, unified=True)]


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
