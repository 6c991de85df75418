"""What the vendors' tools print, turned into facts. Pure functions from text to `Gpu`s, tested on recorded outputs.

Standard library only: `start.py` reads the hardware with these before anything is installed. A tool's "N/A" or a
field it does not print becomes "" or 0, never a guess: a gfx target comes from a tool that names it, not from a
product's name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """One GPU. `target` is the gfx name (AMD, `gfx1151`) or compute capability (NVIDIA, `8.9`); "" and 0 mean unknown.

    `memory_bytes` is what torch can allocate; on a `unified` GPU that is a share of the machine's own memory.
    """

    name: str
    vendor: str
    target: str = ""
    memory_bytes: int = 0
    unified: bool = False
    driver: str = ""


def nvidia_smi(text: str) -> list[Gpu]:
    """From `nvidia-smi --query-gpu=name,memory.total,driver_version,compute_cap --format=csv,noheader,nounits`."""
    gpus = []
    for line in text.splitlines():
        fields = [_known(field) for field in line.split(",")]
        if len(fields) == 4:
            name, mebibytes, driver, capability = fields
            memory = int(mebibytes) * MIB if mebibytes.isdigit() else 0
            gpus.append(Gpu(name, "nvidia", capability, memory, unified=not memory, driver=driver))
    return gpus


def hipinfo(text: str) -> list[Gpu]:
    """From `hipInfo`, whose GB are GiB."""
    gpus = []
    for block in re.split(r"^device#", text, flags=re.MULTILINE)[1:]:
        facts = _key_values(block)
        gfx, size = _gfx(facts.get("gcnArchName", "")), facts.get("totalGlobalMem", "").split()
        memory = int(float(size[0]) * GIB) if size else 0
        gpus.append(Gpu(facts.get("Name", ""), "amd", gfx, memory, unified=facts.get("isIntegrated") == "1"))
    return gpus


def clinfo(text: str) -> list[Gpu]:
    """From AMD's `clinfo`, which its Windows driver installs."""
    gpus = []
    for block in re.split(r"^\s*Device Type:", text, flags=re.MULTILINE)[1:]:
        facts = _key_values(block)
        if "CL_DEVICE_TYPE_GPU" in block.split("\n")[0] and _gfx(facts.get("Name", "")):
            memory = facts.get("Global memory size", "")
            gpus.append(
                Gpu(
                    facts.get("Board name", ""),
                    "amd",
                    _gfx(facts["Name"]),
                    int(memory) if memory.isdigit() else 0,
                    driver=facts.get("Driver version", ""),
                )
            )
    return gpus


def rocminfo(text: str) -> list[Gpu]:
    """From `rocminfo`. CPU agents and the NPU's are passed over."""
    gpus = []
    for block in re.split(r"^Agent \d+\s*$", text, flags=re.MULTILINE)[1:]:
        facts = _key_values("\n".join(line for line in block.splitlines() if re.match(r"  \S", line)))
        if facts.get("Device Type") == "GPU":
            pools = [int(kib) * 1024 for kib in re.findall(r"^\s+Size:\s+(\d+)\(0x[0-9a-f]+\) KB", block, re.MULTILINE)]
            gpus.append(Gpu(facts.get("Marketing Name", ""), "amd", _gfx(facts["Name"]), max(pools, default=0)))
    return gpus


def amd_smi(text: str) -> list[Gpu]:
    """From `amd-smi static`, as text or with `--json` (a list, or since 2025 an object with `gpu_data`)."""
    try:
        found = json.loads(text)
    except ValueError:
        found = _amd_smi_text(text)
    return [_amd_smi_gpu(entry) for entry in (found["gpu_data"] if isinstance(found, dict) else found)]


def kfd_properties(text: str) -> dict[str, int]:
    """From `/sys/class/kfd/kfd/topology/nodes/*/properties`: lines of a name and a number."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def gfx_name(version: int) -> str:
    """The kernel's `gfx_target_version` as a name: 110501 is gfx1151, 90010 is gfx90a."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _amd_smi_text(text: str) -> list[dict[str, Any]]:
    """The indented text in the shape of the JSON: {"asic": {"market_name": …}, …} a GPU."""
    gpus: list[dict[str, Any]] = []
    section: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        indent = len(line) - len(line.lstrip())
        if key == "GPU" and indent == 0:
            gpus.append({"gpu": value})
        elif gpus and indent == 4:
            section = gpus[-1].setdefault(key.lower(), {})
        elif gpus and indent == 8:
            section[key.lower()] = value
    return gpus


def _amd_smi_gpu(entry: dict[str, Any]) -> Gpu:
    parts = [entry.get(part) for part in ("asic", "driver", "vram")]
    asic, driver, vram = (part if isinstance(part, dict) else {} for part in parts)  # a part may be "N/A" as a whole
    size = vram.get("size", "")
    mebibytes = str(size.get("value", "") if isinstance(size, dict) else size).split(" ")[0]
    return Gpu(
        _known(asic.get("market_name", "")),
        "amd",
        _gfx(asic.get("target_graphics_version", "")),
        int(mebibytes) * MIB if mebibytes.isdigit() else 0,
        driver=_known(driver.get("version", "")),
    )


def _key_values(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _known(field: str) -> str:
    field = field.strip()
    return "" if field in ("N/A", "[N/A]", "[Not Supported]", "[Unknown Error]") else field


def _gfx(text: str) -> str:
    """`gfx942` of `gfx942:sramecc+:xnack-`; "" if it is not a gfx name."""
    match = re.match(r"gfx[0-9a-f]+", text.strip())
    return match.group() if match else ""
