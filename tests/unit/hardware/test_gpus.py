from __future__ import annotations

import platform
from pathlib import Path

import pytest

from luthier.hardware import gpus
from luthier.hardware.parse import GIB, Gpu

RECORDED = {file.stem: file.read_text() for file in (Path(__file__).parent / "recorded").glob("*.txt")}
HIPINFO, ROCMINFO, AMD_SMI, CLINFO = (RECORDED[tool] for tool in ("hipinfo", "rocminfo", "amd-smi", "clinfo"))


def machine(
    monkeypatch: pytest.MonkeyPatch, system: str, tools: dict[str, str], kernel: list[Gpu] | None = None
) -> None:
    """A machine where these tools print these texts and every other is missing."""
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(gpus, "output_of", lambda command: tools.get(command[0], ""))
    monkeypatch.setattr(gpus, "kfd_gpus", lambda: list(kernel or []))


@pytest.fixture
def sys_class(tmp_path: Path) -> Path:
    """sysfs of a Ryzen AI Max: node 0 is the CPU, node 1 the GPU with a small carve-out and a large GTT."""
    nodes = tmp_path / "kfd/kfd/topology/nodes"
    cpu, gpu, device = nodes / "0", nodes / "1", tmp_path / "drm/renderD128/device"
    for folder in (cpu, gpu, device):
        folder.mkdir(parents=True)
    (cpu / "properties").write_text("cpu_cores_count 32\nsimd_count 0\ngfx_target_version 0\n")
    (gpu / "properties").write_text("simd_count 80\ngfx_target_version 110501\nvendor_id 4098\ndrm_render_minor 128\n")
    (device / "mem_info_vram_total").write_text(f"{GIB // 2}\n")
    (device / "mem_info_gtt_total").write_text(f"{62 * GIB}\n")
    return tmp_path


def test_the_kernel_names_chip_and_memory(sys_class: Path) -> None:
    assert gpus.kfd_gpus(sys_class) == [Gpu("", "amd", "gfx1151", 62 * GIB, unified=True)]


def test_a_card_with_its_own_memory_does_not_count_the_machines(sys_class: Path) -> None:
    (sys_class / "kfd/kfd/topology/nodes/1/properties").write_text("gfx_target_version 110000\ndrm_render_minor 128\n")
    assert gpus.kfd_gpus(sys_class) == [Gpu("", "amd", "gfx1100", GIB // 2)]


def test_no_driver_no_gpus(tmp_path: Path) -> None:
    assert gpus.kfd_gpus(tmp_path) == []


def test_linux_takes_the_chip_from_the_kernel_and_the_name_from_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = [Gpu("", "amd", "gfx1151", 96 * GIB, unified=True)]
    machine(monkeypatch, "Linux", {"rocminfo": ROCMINFO}, kernel)
    assert gpus.find_amd_gpus() == [Gpu("AMD Radeon 8060S", "amd", "gfx1151", 96 * GIB, unified=True)]


def test_linux_without_any_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "Linux", {}, [Gpu("", "amd", "gfx1151", 96 * GIB, unified=True)])
    assert gpus.find_amd_gpus() == [Gpu("AMD GPU (gfx1151)", "amd", "gfx1151", 96 * GIB, unified=True)]


def test_a_tool_that_disagrees_with_the_kernel_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "Linux", {"amd-smi": AMD_SMI}, [Gpu("", "amd", "gfx1100", 24 * GIB)])
    assert gpus.find_amd_gpus() == [Gpu("AMD GPU (gfx1100)", "amd", "gfx1100", 24 * GIB)]


def test_wsl_has_no_kernel_driver_but_rocminfo(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "Linux", {"amd-smi": "ERROR:root:Unable to detect any GPU devices", "rocminfo": ROCMINFO})
    assert gpus.find_amd_gpus() == [Gpu("AMD Radeon 8060S", "amd", "gfx1151", 64 * GIB, unified=True)]


@pytest.mark.parametrize("tools", [{"hipinfo": HIPINFO}, {"clinfo": CLINFO}], ids=["hipinfo", "clinfo"])
def test_windows_asks_hipinfo_or_clinfo(monkeypatch: pytest.MonkeyPatch, tools: dict[str, str]) -> None:
    machine(monkeypatch, "Windows", tools)
    (gpu,) = gpus.find_amd_gpus()
    assert (gpu.name, gpu.target, gpu.unified) == ("AMD Radeon(TM) 8060S Graphics", "gfx1151", True)
    assert round(gpu.memory_bytes / GIB, 1) == 107.9


def test_a_gpu_whose_chip_no_tool_tells_is_named_and_its_chip_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "Windows", {"powershell": "Intel(R) UHD Graphics\nAMD Radeon(TM) 8060S Graphics\n"})
    assert gpus.find_amd_gpus() == [Gpu("AMD Radeon(TM) 8060S Graphics", "amd")]


def test_nvidia_comes_before_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "Linux", {"nvidia-smi": "Tesla T4, 15360, 580.1, 7.5"}, [Gpu("", "amd", "gfx1036", GIB)])
    assert [(gpu.vendor, gpu.target) for gpu in gpus.find_gpus()] == [("nvidia", "7.5"), ("amd", "gfx1036")]


def test_a_tool_that_is_missing_fails_or_hangs_prints_nothing() -> None:
    assert gpus.output_of(["no-such-tool-anywhere"]) == ""
    assert gpus.output_of(["python3", "-c", "print('half'); raise SystemExit(3)"]) == ""
    assert gpus.output_of(["python3", "-c", "import time; time.sleep(9)"], timeout=0.2) == ""
    assert gpus.output_of(["python3", "-c", "print('whole')"]) == "whole\n"
