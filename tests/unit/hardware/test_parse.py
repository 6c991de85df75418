"""On outputs retyped from manuals and reports of such machines, cut to the lines around those that are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.hardware import parse
from luthier.hardware.parse import GIB, MIB, Gpu

RECORDED = {file.stem: file.read_text() for file in (Path(__file__).parent / "recorded").glob("*.txt")}
HIPINFO, ROCMINFO, AMD_SMI, CLINFO = (RECORDED[tool] for tool in ("hipinfo", "rocminfo", "amd-smi", "clinfo"))
AMD_SMI_ENTRIES = [
    {
        "gpu": 0,
        "asic": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002", "target_graphics_version": "gfx942"},
        "driver": {"name": "amdgpu", "version": "6.12.12"},
        "vram": {"type": "HBM3", "size": {"value": 196592, "unit": "MB"}},
    },
    {
        "gpu": 1,
        "asic": {"market_name": "AMD Radeon Graphics", "target_graphics_version": "gfx1151"},
        "driver": {"name": "amdgpu", "version": "N/A"},
        "vram": "N/A",
    },
]

AMD_SMI_GPUS = [
    Gpu("AMD Instinct MI300X", "amd", "gfx942", 196592 * MIB, driver="6.12.12"),
    Gpu("AMD Radeon Graphics", "amd", "gfx1151"),
]


def test_hipinfo_of_the_tutorials_machine() -> None:
    gib = int(107.87 * GIB)
    assert parse.hipinfo(HIPINFO) == [Gpu("AMD Radeon(TM) 8060S Graphics", "amd", "gfx1151", gib, unified=True)]


def test_hipinfo_of_two_cards_and_a_target_with_features() -> None:
    two = HIPINFO + HIPINFO.replace(
        "device#                           0", "device#                           1"
    ).replace("gcnArchName:                      gfx1151", "gcnArchName:                      gfx942:sramecc+:xnack-")
    assert [gpu.target for gpu in parse.hipinfo(two)] == ["gfx1151", "gfx942"]


def test_rocminfo_passes_over_cpu_and_npu() -> None:
    assert parse.rocminfo(ROCMINFO) == [Gpu("AMD Radeon 8060S", "amd", "gfx1151", 64 * GIB)]


@pytest.mark.parametrize(
    "text",
    [AMD_SMI, json.dumps(AMD_SMI_ENTRIES), json.dumps({"gpu_data": AMD_SMI_ENTRIES})],
    ids=["text", "json list", "json gpu_data"],
)
def test_amd_smi_in_its_three_shapes(text: str) -> None:
    assert parse.amd_smi(text) == AMD_SMI_GPUS


def test_clinfo_of_amds_windows_driver() -> None:
    assert parse.clinfo(CLINFO) == [
        Gpu("AMD Radeon(TM) 8060S Graphics", "amd", "gfx1151", 115830947840, driver="3652.0 (PAL,LC)")
    ]


def test_clinfo_passes_over_what_is_no_amd_gpu() -> None:
    other = CLINFO.replace("gfx1151", "Intel(R) UHD Graphics 770")
    cpu = CLINFO.replace("CL_DEVICE_TYPE_GPU", "CL_DEVICE_TYPE_CPU")
    assert parse.clinfo(other + cpu) == []


def test_nvidia_smi() -> None:
    text = "NVIDIA GeForce RTX 4090, 24564, 550.54.14, 8.9\nTesla T4, 15360, 550.54.14, 7.5\n"
    assert parse.nvidia_smi(text) == [
        Gpu("NVIDIA GeForce RTX 4090", "nvidia", "8.9", 24564 * MIB, driver="550.54.14"),
        Gpu("Tesla T4", "nvidia", "7.5", 15360 * MIB, driver="550.54.14"),
    ]


def test_nvidia_smi_where_memory_is_shared_and_not_told() -> None:
    assert parse.nvidia_smi("NVIDIA GB10, [N/A], 580.95.05, 12.1\n") == [
        Gpu("NVIDIA GB10", "nvidia", "12.1", unified=True, driver="580.95.05")
    ]


@pytest.mark.parametrize("read", [parse.nvidia_smi, parse.hipinfo, parse.clinfo, parse.rocminfo])
@pytest.mark.parametrize(
    "text", ["", "No devices were found\n", "ROCk module is NOT loaded, possibly no GPU devices\n"]
)
def test_no_output_no_gpus(read: object, text: str) -> None:
    assert callable(read)
    assert read(text) == []


@pytest.mark.parametrize(
    ("version", "name"),
    [(110501, "gfx1151"), (110500, "gfx1150"), (90010, "gfx90a"), (90402, "gfx942"), (120001, "gfx1201")],
)
def test_the_kernels_number_as_gfx_name(version: int, name: str) -> None:
    assert parse.gfx_name(version) == name
