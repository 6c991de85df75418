from __future__ import annotations

import pytest

from luthier.errors import InputError
from luthier.hardware.parse import GIB, Gpu
from luthier.hardware.torch_builds import load_table, plan

RTX = Gpu("NVIDIA GeForce RTX 4090", "nvidia", "8.9", 24 * GIB, driver="580.65.06")
RYZEN = Gpu("AMD Radeon 8060S", "amd", "gfx1151", 96 * GIB, unified=True)
CPU_LINUX = [
    "torch==2.13.0+cpu from https://download.pytorch.org/whl/cpu/",
    "torch==2.13.0+cpu from https://mirror.nju.edu.cn/pytorch/whl/cpu/",
    "torch==2.13.0 from the package index pip is set to",
]
ROCM = [
    "torch[device-gfx1151]==2.13.0+rocm10.0.0 from https://stable.repo.amd.com/rocm/whl-next/",
    "rocm[libraries,device-gfx1151]==7.14.0 torch[device-gfx1151]==2.12.0+rocm7.14.0 "
    "from https://repo.amd.com/rocm/whl-multi-arch/",
]


def builds(asked: str, gpus: list[Gpu], system: str = "Linux", python: tuple[int, int] = (3, 12)) -> list[str]:
    return [str(build) for build in plan(asked, gpus, system, python).builds]


def test_no_gpu_takes_the_cpu_build_and_its_index_first() -> None:
    assert builds("auto", []) == CPU_LINUX
    assert {build.kind for build in plan("auto", [], "Linux", (3, 12)).builds} == {"cpu"}


@pytest.mark.parametrize("system", ["Windows", "Darwin"])
def test_the_package_index_holds_the_cpu_build_of_windows_and_macos(system: str) -> None:
    assert builds("auto", [], system) == CPU_LINUX[2:]


def test_nvidia_takes_the_cuda_build_and_ends_with_the_cpu() -> None:
    made = plan("auto", [RTX], "Linux", (3, 12))
    assert made.reason == "NVIDIA GeForce RTX 4090, compute capability 8.9, driver 580.65.06"
    assert [str(build) for build in made.builds] == [
        "torch==2.13.0+cu130 from https://download.pytorch.org/whl/cu130/",
        "torch==2.13.0+cu130 from https://mirror.nju.edu.cn/pytorch/whl/cu130/",
        "torch==2.13.0 from the package index pip is set to",
        *CPU_LINUX,
    ]
    assert [build.kind for build in made.builds] == ["cuda"] * 3 + ["cpu"] * 3


def test_cuda_on_windows_comes_from_its_index_alone() -> None:
    assert [build.index[:12] for build in plan("cuda", [RTX], "Windows", (3, 12)).builds] == [
        "https://down",
        "https://mirr",
    ]


@pytest.mark.parametrize(
    ("capability", "driver", "version"),
    [("7.5", "580.1", "cu130"), ("12.0", "581.08", "cu130"), ("6.1", "580.1", "cu126"), ("8.6", "535.183.01", "cu126")],
)
def test_cuda_version_follows_card_and_driver(capability: str, driver: str, version: str) -> None:
    card = Gpu("card", "nvidia", capability, 8 * GIB, driver=driver)
    assert builds("auto", [card])[0] == f"torch==2.13.0+{version} from https://download.pytorch.org/whl/{version}/"


def test_a_card_that_needs_a_newer_driver_gets_the_cpu_build_and_is_told() -> None:
    made = plan("auto", [Gpu("RTX 5070", "nvidia", "12.0", driver="560.1")], "Linux", (3, 12))
    assert [str(build) for build in made.builds] == CPU_LINUX
    assert made.notes == (
        "no CUDA build of torch fits RTX 5070 (compute capability 12.0) with driver 560.1; "
        "update the driver and start with --torch auto",
    )


@pytest.mark.parametrize("system", ["Linux", "Windows"])
def test_amd_takes_the_wheels_for_its_own_chip(system: str) -> None:
    made = plan("auto", [RYZEN], system, (3, 12))
    assert made.reason == "AMD Radeon 8060S, gfx1151"
    assert [str(build) for build in made.builds][:2] == ROCM
    assert made.builds[-1].kind == "cpu"


def test_no_build_for_amd_can_end_in_cuda() -> None:
    assert {build.kind for build in plan("auto", [RYZEN], "Linux", (3, 12)).builds} == {"rocm", "cpu"}


def test_two_chips_one_install() -> None:
    gpus = [RYZEN, Gpu("RX 7900 XTX", "amd", "gfx1100", 24 * GIB), Gpu("iGPU", "amd", "gfx1036")]
    assert builds("auto", gpus)[0].startswith("torch[device-gfx1151,device-gfx1100]==2.13.0+rocm10.0.0 from")


def test_python_3_10_has_no_rocm_wheels_and_is_told() -> None:
    made = plan("auto", [RYZEN], "Windows", (3, 10))
    assert [str(build) for build in made.builds] == CPU_LINUX[2:]
    assert made.notes == ("AMD has torch wheels for Python 3.11 to 3.14, and this is 3.10",)
    with pytest.raises(InputError) as caught:
        plan("rocm-gfx1151", [RYZEN], "Windows", (3, 10))
    assert str(caught.value) == (
        "torch for AMD: AMD has torch wheels for Python 3.11 to 3.14, and this is 3.10\n"
        "  fix: start with one of those Pythons"
    )


def test_a_chip_without_wheels_gets_the_cpu_build_and_is_told() -> None:
    made = plan("auto", [Gpu("Vega 8", "amd", "gfx902")], "Linux", (3, 12))
    assert [str(build) for build in made.builds] == CPU_LINUX
    assert made.notes[0].startswith("AMD has no torch wheels for gfx902 on Linux; it has them for gfx1151, gfx1150,")


def test_instinct_has_wheels_on_linux_only() -> None:
    mi300 = Gpu("MI300X", "amd", "gfx942", 192 * GIB)
    assert plan("auto", [mi300], "Linux", (3, 12)).builds[0].kind == "rocm"
    assert plan("auto", [mi300], "Windows", (3, 12)).builds[0].kind == "cpu"


def test_a_chip_that_no_tool_names_is_not_guessed() -> None:
    made = plan("auto", [Gpu("AMD Radeon(TM) 8060S Graphics", "amd")], "Windows", (3, 12))
    assert [str(build) for build in made.builds] == CPU_LINUX[2:]
    assert made.notes == (
        "AMD Radeon(TM) 8060S Graphics: no tool tells its gfx name; if you know it, start with --torch rocm-gfx…",
    )


def test_an_explicit_build_is_never_replaced_by_another_kind() -> None:
    assert builds("cpu", [RTX]) == CPU_LINUX
    assert {build.kind for build in plan("cuda", [], "Linux", (3, 12)).builds} == {"cuda"}
    assert builds("rocm-gfx1151", []) == ROCM


@pytest.mark.parametrize(("asked", "system"), [("cudda", "Linux"), ("cuda", "Darwin"), ("rocm", "Linux")])
def test_an_unknown_build_names_those_there_are(asked: str, system: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(asked, [], system, (3, 12))
    assert str(caught.value) == (
        f"--torch {asked}: there is no such build for {system}\n"
        "  fix: use one of: auto, cpu, cuda, keep, or rocm-gfx1151 with your chip's gfx name"
    )


def test_every_chip_of_the_table_resolves_to_its_own_wheels() -> None:
    chips = load_table()["gfx"]
    assert len(chips) == 15
    for gfx in chips:
        assert builds(f"rocm-{gfx}", [])[0].startswith(f"torch[device-{gfx}]==2.13.0+rocm10.0.0 ")
