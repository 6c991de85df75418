"""Which torch builds fit a machine, best first. The facts are in torch_builds.json; standard library only."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import InputError, Problem
from luthier.hardware.parse import Gpu

OWN_INDEX = "the package index pip is set to"
ASKED = "auto, cpu, cuda, keep, or rocm-gfx1151 with your chip's gfx name"


@dataclass(frozen=True)
class Build:
    """One way to get torch: what to ask pip for, and of which index besides the user's own ("" for none)."""

    kind: str  # "cpu", "cuda" or "rocm"
    requirements: tuple[str, ...]
    index: str
    disk_gb: int

    def __str__(self) -> str:
        return f"{' '.join(self.requirements)} from {self.index or OWN_INDEX}"


@dataclass(frozen=True)
class Plan:
    """Builds to try in order, why, and what the user should know."""

    builds: tuple[Build, ...]
    reason: str
    notes: tuple[str, ...] = ()


@functools.cache
def load_table() -> dict[str, Any]:
    """torch_builds.json."""
    table: dict[str, Any] = json.loads(Path(__file__).with_name("torch_builds.json").read_text(encoding="utf-8"))
    return table


def plan(asked: str, gpus: Sequence[Gpu], system: str, python: tuple[int, int]) -> Plan:
    """The builds for `asked` (see ASKED) on this machine.

    "auto" ends with the CPU build, so that Luthier runs everywhere; an explicit build is obeyed or refused.
    `system` is `platform.system()`. Raises InputError for a build that does not exist for this system, chip or Python.
    """
    reason = f"--torch {asked}"
    if asked == "auto":
        return _automatic(gpus, system, python)
    if asked == "cpu":
        return Plan(_cpu(system), reason)
    if asked == "cuda" and system != "Darwin":
        rows = load_table()["cuda"]
        fitting = [row for row in rows if any(_fits(row, gpu) for gpu in gpus)]
        return Plan(_cuda((fitting or rows)[0], system), reason)
    if asked.startswith("rocm-gfx"):
        return Plan(_rocm([asked.removeprefix("rocm-")], system, python), reason)
    raise InputError(Problem(reason, f"there is no such build for {system}", f"use one of: {ASKED}"))


def _automatic(gpus: Sequence[Gpu], system: str, python: tuple[int, int]) -> Plan:
    """NVIDIA's build before AMD's before the CPU's; a note for each GPU that has to stay unused."""
    notes: list[str] = []
    for gpu in gpus:
        if gpu.vendor == "nvidia":
            fitting = [row for row in load_table()["cuda"] if _fits(row, gpu)]
            if fitting:
                reason = f"{gpu.name}, compute capability {gpu.target}, driver {gpu.driver}"
                return Plan((*_cuda(fitting[0], system), *_cpu(system)), reason)
            notes.append(
                f"no CUDA build of torch fits {gpu.name} (compute capability {gpu.target}) with driver {gpu.driver}; "
                "update the driver and start with --torch auto"
            )
        if gpu.vendor == "amd" and not gpu.target:
            notes.append(f"{gpu.name}: no tool tells its gfx name; if you know it, start with --torch rocm-gfx…")
    amd = {gpu.target: gpu for gpu in gpus if gpu.vendor == "amd" and gpu.target}
    if amd:
        try:
            builds = _rocm(list(amd), system, python)
        except InputError as error:
            notes.append(error.problems[0].what)
        else:
            names = ", ".join(f"{gpu.name}, {target}" for target, gpu in amd.items())
            return Plan((*builds, *_cpu(system)), names, tuple(notes))
    apple = ", ".join(gpu.name for gpu in gpus if gpu.vendor == "apple")
    return Plan(_cpu(system), apple or "no GPU that torch can use", tuple(notes))


def _cpu(system: str) -> tuple[Build, ...]:
    """On Windows and macOS the package index holds the CPU (or MPS) build itself; on Linux it may hold CUDA's."""
    row = load_table()["cpu"]
    return (*(_indexed("cpu", row) if system == "Linux" else ()), _plain("cpu", row["disk_gb"]))


def _cuda(row: dict[str, Any], system: str) -> tuple[Build, ...]:
    return (*_indexed("cuda", row), *([_plain("cuda", row["disk_gb"])] if system == "Linux" else []))


def _rocm(targets: list[str], system: str, python: tuple[int, int]) -> tuple[Build, ...]:
    """Builds for those of the chips that AMD has wheels for. Raises InputError if there are none."""
    table = load_table()
    systems = {gfx: ("Linux", "Windows") if facts["windows"] else ("Linux",) for gfx, facts in table["gfx"].items()}
    fitting = [gfx for gfx in targets if system in systems.get(gfx, ())]
    if not fitting:
        known = ", ".join(gfx for gfx in systems if system in systems[gfx]) or "none"
        what = f"AMD has no torch wheels for {', '.join(targets)} on {system}; it has them for {known}"
        raise InputError(Problem("torch for AMD", what, f"use one of: {ASKED}"))
    rows = [row for row in table["rocm"] if _version(row["python"]["from"]) <= python <= _version(row["python"]["to"])]
    if not rows:
        first = table["rocm"][0]["python"]
        what = f"AMD has torch wheels for Python {first['from']} to {first['to']}, and this is {python[0]}.{python[1]}"
        raise InputError(Problem("torch for AMD", what, "start with one of those Pythons"))
    devices = ",".join(f"device-{gfx}" for gfx in fitting)
    return tuple(build for row in rows for build in _indexed("rocm", row, devices))


def _indexed(kind: str, row: dict[str, Any], devices: str = "") -> tuple[Build, ...]:
    requirements = tuple(text.format(devices=devices) for text in row["requirements"])
    return tuple(Build(kind, requirements, index, row["disk_gb"]) for index in row["indexes"])


def _plain(kind: str, disk_gb: int) -> Build:
    return Build(kind, (f"torch=={load_table()['version']}",), "", disk_gb)


def _fits(row: dict[str, Any], gpu: Gpu) -> bool:
    """Whether the build has kernels for the GPU and its driver is new enough. What is unknown rules nothing out."""
    capability = row["compute_capability"]
    has_kernels = not gpu.target or _version(capability["from"]) <= _version(gpu.target) <= _version(capability["to"])
    return (
        gpu.vendor == "nvidia" and has_kernels and (not gpu.driver or _version(gpu.driver) >= _version(row["driver"]))
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))
