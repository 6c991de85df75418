"""Verdicts on recorded facts: the tutorial's Ryzen AI Max, an NVIDIA machine, one without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.hardware.doctor import REINSTALL, Finding, can_train, examine
from luthier.hardware.environment import AOTRITON
from luthier.hardware.facts import Facts, Library, Torch
from luthier.hardware.parse import GIB, Gpu
from luthier.hardware.probe import Hardware

LIBRARIES = (
    Library("transformers", "5.23.0", "<6,>=5.23", fits=True),
    Library("peft", "0.21.2", ">=0.21.2", fits=True),
)
HUBS = {"https://www.modelscope.cn": "", "https://huggingface.co": ""}
CPU_RATES: dict[str, float | str] = {"float32": 143e9, "bfloat16": 1.3e9, "float16": 1.2e9}

LAPTOP = Facts(
    Hardware(
        system="Linux",
        os="Ubuntu 24.04.3 LTS, Linux 6.14 x86_64",
        python="3.12.3",
        cpu="AMD Ryzen 5 5600U",
        cores=6,
        threads=12,
        instructions=("avx2",),
        memory_bytes=16 * GIB,
        memory_available_bytes=12 * GIB,
        disk_free_bytes=100_000_000_000,
        gpus=(),
    ),
    Torch("2.13.0+cpu", rates={"cpu": CPU_RATES}),
    environ={},
    libraries=LIBRARIES,
    hubs=HUBS,
)
RYZEN = replace(
    LAPTOP,
    hardware=replace(
        LAPTOP.hardware,
        system="Linux",
        cpu="AMD RYZEN AI MAX+ 395 w/ Radeon 8060S",
        cores=16,
        threads=32,
        instructions=("avx2", "avx512f", "avx512_bf16"),
        memory_bytes=125 * GIB,
        memory_available_bytes=110 * GIB,
        gpus=(Gpu("AMD Radeon 8060S", "amd", "gfx1151", 100 * GIB, unified=True, driver="6.14.0"),),
        gtt_limit_bytes=100 * GIB,
    ),
    torch=Torch(
        "2.13.0+rocm10.0.0",
        rocm="10.0.26330",
        devices=("AMD Radeon 8060S",),
        targets=("gfx1100", "gfx1150", "gfx1151"),
        rates={"cpu": CPU_RATES, "cuda": {"float32": 8e12, "bfloat16": 30.2e12, "float16": 31e12}},
    ),
    device_wheels=("gfx1151",),
)
NVIDIA = replace(
    LAPTOP,
    hardware=replace(
        LAPTOP.hardware, gpus=(Gpu("NVIDIA GeForce RTX 4090", "nvidia", "8.9", 24 * GIB, driver="580.65.06"),)
    ),
    torch=Torch(
        "2.13.0+cu130",
        cuda="13.0",
        devices=("NVIDIA GeForce RTX 4090",),
        targets=("sm_75", "sm_80", "sm_86", "sm_90", "sm_120"),
        rates={"cpu": CPU_RATES, "cuda": {"float32": 50e12, "bfloat16": 150e12, "float16": 150e12}},
    ),
)


def with_gpu(facts: Facts, **changes: object) -> Facts:
    (gpu,) = facts.hardware.gpus
    return replace(facts, hardware=replace(facts.hardware, gpus=(replace(gpu, **changes),)))  # type: ignore[arg-type]


def complaints(facts: Facts) -> list[Finding]:
    return [finding for finding in examine(facts) if finding.verdict != "ok"]


def fact(facts: Facts, topic: str) -> str:
    return next(finding.fact for finding in examine(facts) if finding.topic == topic)


@pytest.mark.parametrize("facts", [LAPTOP, RYZEN, NVIDIA], ids=["laptop", "ryzen", "nvidia"])
def test_sound_machines_get_no_complaint(facts: Facts) -> None:
    assert complaints(facts) == []
    assert can_train(examine(facts))


def test_a_machine_without_gpu_line_by_line() -> None:
    assert [(finding.topic, finding.fact) for finding in examine(LAPTOP)] == [
        ("system", "Ubuntu 24.04.3 LTS, Linux 6.14 x86_64"),
        ("Python", "3.12.3"),
        ("CPU", "AMD Ryzen 5 5600U: 6 cores, 12 threads; avx2"),
        ("memory", "12.0 of 16.0 GiB free"),
        ("disk", "100 GB free"),
        ("GPU", "none found: Luthier computes on the CPU"),
        ("torch", "2.13.0+cpu, built for CPUs"),
        ("torch on cpu", "float32 143 GFLOP/s, bfloat16 1.3 GFLOP/s, float16 1.2 GFLOP/s; float32 is used"),
        ("libraries", "transformers 5.23.0, peft 0.21.2"),
        ("hub", "https://www.modelscope.cn answers"),
        ("hub", "https://huggingface.co answers"),
    ]


def test_what_a_ryzen_ai_max_is_told() -> None:
    assert fact(RYZEN, "GPU") == "AMD Radeon 8060S: gfx1151, 100.0 GiB, shared with the CPU, driver 6.14.0"
    assert fact(RYZEN, "torch") == "2.13.0+rocm10.0.0, built for ROCm 10.0.26330; sees AMD Radeon 8060S"
    assert fact(RYZEN, "torch on cuda") == (
        "float32 8 TFLOP/s, bfloat16 30.2 TFLOP/s, float16 31 TFLOP/s; bfloat16 is used"
    )
    assert fact(RYZEN, "attention") == (
        f"fast attention on gfx1151 needs {AOTRITON}=1: Luthier sets it for its runs, other programs do not"
    )


def test_what_an_nvidia_machine_is_told() -> None:
    assert fact(NVIDIA, "GPU") == "NVIDIA GeForce RTX 4090: compute capability 8.9, 24.0 GiB, driver 580.65.06"
    assert fact(NVIDIA, "torch") == "2.13.0+cu130, built for CUDA 13.0; sees NVIDIA GeForce RTX 4090"


def test_wheels_from_another_chips_index() -> None:
    """The tutorial gives a gfx1151 machine the gfx1150 index."""
    wrong = replace(RYZEN, device_wheels=(), torch=replace(RYZEN.torch, targets=("gfx1150",)))
    expected = Finding(
        "torch's chip",
        "torch was installed for gfx1150, but AMD Radeon 8060S is gfx1151",
        "warn",
        "python start.py --torch rocm-gfx1151 doctor",
    )
    assert complaints(wrong) == [expected]
    assert complaints(replace(RYZEN, device_wheels=("gfx1150",))) == [expected]


@pytest.mark.parametrize(("facts", "gpu"), [(RYZEN, "AMD Radeon 8060S"), (NVIDIA, "NVIDIA GeForce RTX 4090")])
def test_a_cpu_torch_beside_a_gpu(facts: Facts, gpu: str) -> None:
    assert complaints(replace(facts, torch=LAPTOP.torch, device_wheels=())) == [
        Finding("torch", f"2.13.0+cpu, built for CPUs, beside {gpu}: the GPU stays unused", "warn", REINSTALL)
    ]


@pytest.mark.parametrize(
    ("python", "target", "fix"),
    [
        ("3.10.14", "gfx1151", "AMD has torch wheels for Python 3.11 to 3.14, and this is 3.10"),
        ("3.12.3", "gfx902", "AMD has no torch wheels for gfx902 on Linux; it has them for gfx1151,"),
    ],
)
def test_why_a_gpu_has_to_stay_unused(python: str, target: str, fix: str) -> None:
    facts = with_gpu(replace(RYZEN, torch=LAPTOP.torch, device_wheels=()), target=target)
    (finding,) = complaints(replace(facts, hardware=replace(facts.hardware, python=python)))
    assert finding.fact == "2.13.0+cpu, built for CPUs, beside AMD Radeon 8060S: the GPU stays unused"
    assert finding.fix.startswith(fix)


def test_a_gpu_torch_that_sees_no_gpu() -> None:
    blind = replace(NVIDIA, torch=replace(NVIDIA.torch, devices=(), rates={"cpu": CPU_RATES}))
    assert complaints(blind) == [
        Finding(
            "torch",
            "2.13.0+cu130, built for CUDA 13.0, sees no GPU, but there is NVIDIA GeForce RTX 4090",
            "warn",
            f"update the GPU's driver; if that does not help: {REINSTALL}",
        )
    ]


def test_a_gpu_that_is_seen_but_does_not_compute() -> None:
    rates = {"cpu": CPU_RATES, "cuda": dict.fromkeys(CPU_RATES, "HIP error: invalid device function")}
    (finding,) = complaints(replace(RYZEN, torch=replace(RYZEN.torch, rates=rates)))
    assert finding.topic == "torch on cuda"
    assert finding.fact.startswith("float32 fails: HIP error: invalid device function, bfloat16 fails:")
    assert finding.fix == (f"update the GPU's driver, or: {REINSTALL}; until then Luthier computes on the CPU")
    assert can_train([finding])


def test_the_overridden_gfx_version() -> None:
    assert complaints(replace(RYZEN, environ={"HSA_OVERRIDE_GFX_VERSION": "11.0.0"})) == [
        Finding(
            "gfx override",
            "HSA_OVERRIDE_GFX_VERSION=11.0.0 makes the driver lie about the chip: wrong results or hangs",
            "warn",
            "unset it: wheels for the chip itself do not need it",
        )
    ]


def test_the_override_is_nothing_to_an_nvidia_machine() -> None:
    assert complaints(replace(NVIDIA, environ={"HSA_OVERRIDE_GFX_VERSION": "11.0.0"})) == []


def test_fast_attention_switched_off_by_hand() -> None:
    assert complaints(replace(RYZEN, environ={AOTRITON: "0"})) == [
        Finding(
            "attention",
            f"{AOTRITON}=0: torch computes attention the slow way on gfx1151",
            "warn",
            f"unset it: Luthier then sets {AOTRITON}=1",
        )
    ]
    assert complaints(replace(RYZEN, environ={AOTRITON: "1"})) == []


def test_linux_gives_the_gpu_half_of_the_shared_memory() -> None:
    small = with_gpu(RYZEN, memory_bytes=62 * GIB)
    small = replace(small, hardware=replace(small.hardware, gtt_limit_bytes=62 * GIB))
    assert complaints(small) == [
        Finding(
            "GPU memory",
            "AMD Radeon 8060S may use 62 of the 125 GiB it shares (TTM limit 62 GiB)",
            "warn",
            "pip install amd-debug-tools, then amd-ttm --set 94 and reboot; "
            "and set the GPU's own memory in the BIOS to its smallest value",
        )
    ]


def test_a_user_outside_the_render_group() -> None:
    (finding,) = complaints(replace(RYZEN, kfd_usable=False))
    assert finding.fix == "sudo usermod -aG render,video $USER, then log out and in"


def test_condas_old_libstdcxx() -> None:
    (finding,) = complaints(replace(RYZEN, conda_libstdcxx=29, system_libstdcxx=33))
    assert finding.fact == (
        "conda's libstdc++ (GLIBCXX_3.4.29) is older than the system's (3.4.33): "
        "GPU drivers may fail to load with a GLIBCXX error"
    )
    assert complaints(replace(RYZEN, conda_libstdcxx=33, system_libstdcxx=33)) == []


def test_an_amd_gpu_whose_chip_is_unknown() -> None:
    facts = with_gpu(replace(RYZEN, torch=LAPTOP.torch, device_wheels=()), target="", memory_bytes=0)
    gpu, torch = complaints(facts)
    assert gpu.fact == "AMD Radeon 8060S: unknown chip, memory unknown, shared with the CPU, driver 6.14.0"
    assert gpu.fix == "install AMD's driver; or, if you know the chip, python start.py --torch rocm-gfx… doctor"
    assert torch.fix == "AMD Radeon 8060S: no tool tells its gfx name; if you know it, start with --torch rocm-gfx…"


def test_no_torch_cannot_train() -> None:
    findings = complaints(replace(LAPTOP, torch=Torch(problem="it is not installed")))
    assert findings == [Finding("torch", "torch: it is not installed", "fail", REINSTALL)]
    assert not can_train(findings)


def test_a_torch_that_does_not_compute_cannot_train() -> None:
    broken = replace(
        LAPTOP, torch=replace(LAPTOP.torch, rates={"cpu": dict.fromkeys(CPU_RATES, "Illegal instruction")})
    )
    (finding,) = complaints(broken)
    assert (finding.topic, finding.verdict) == ("torch on cpu", "fail")


def test_missing_and_other_libraries() -> None:
    libraries = (Library("peft", "", ">=0.21.2", fits=False), Library("transformers", "6.0", "<6,>=5.23", fits=False))
    missing, other = complaints(replace(LAPTOP, libraries=libraries))
    assert (missing.fact, missing.verdict) == ("peft is missing", "fail")
    assert (other.fact, other.verdict) == ("transformers 6.0, wanted <6,>=5.23", "warn")


@pytest.mark.parametrize(("free", "verdict"), [(0.5e9, "fail"), (3e9, "warn")])
def test_a_full_disk(free: float, verdict: str) -> None:
    full = replace(LAPTOP, hardware=replace(LAPTOP.hardware, disk_free_bytes=int(free)))
    assert [(finding.topic, finding.verdict) for finding in complaints(full)] == [("disk", verdict)]


def test_little_memory() -> None:
    small = replace(LAPTOP, hardware=replace(LAPTOP.hardware, memory_available_bytes=GIB))
    assert [(finding.topic, finding.verdict) for finding in complaints(small)] == [("memory", "warn")]


def test_python_3_9() -> None:
    old = replace(LAPTOP, hardware=replace(LAPTOP.hardware, python="3.9.18"))
    assert [(finding.topic, finding.verdict) for finding in complaints(old)] == [("Python", "fail")]


def test_one_hub_is_enough_and_none_is_a_warning() -> None:
    addresses = list(HUBS)
    assert complaints(replace(LAPTOP, hubs={addresses[0]: "", addresses[1]: "timed out"})) == []
    silent = replace(LAPTOP, hubs=dict.fromkeys(addresses, "timed out"))
    assert [finding.fact for finding in complaints(silent)] == [
        "no hub answers; local folders, cached models and the bundled model work all the same"
    ]
