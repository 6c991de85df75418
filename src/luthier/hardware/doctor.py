"""Judges the machine: each fact with a verdict, and a fix where one is needed.

Every check is a function from Facts to findings, in the order of CHECKS, so that it is tested on recorded facts of
machines that are not at hand. A finding fails only if training cannot work; what makes it slow or odd is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from luthier.hardware.compute import choose_dtype, flops_text
from luthier.hardware.environment import AOTRITON, needs_experimental_aotriton
from luthier.hardware.facts import Facts
from luthier.hardware.parse import Gpu
from luthier.hardware.torch_builds import plan

GB = 1e9
GIB = 1 << 30
Verdict = Literal["ok", "warn", "fail"]
REINSTALL = "python start.py --torch auto doctor"


@dataclass(frozen=True)
class Finding:
    topic: str
    fact: str
    verdict: Verdict = "ok"
    fix: str = ""


def examine(facts: Facts) -> list[Finding]:
    """All findings, in a fixed order."""
    return [finding for check in CHECKS for finding in check(facts)]


def can_train(findings: Iterable[Finding]) -> bool:
    return all(finding.verdict != "fail" for finding in findings)


def check_system(facts: Facts) -> Iterator[Finding]:
    yield Finding("system", facts.hardware.os)


def check_python(facts: Facts) -> Iterator[Finding]:
    version = tuple(int(part) for part in facts.hardware.python.split(".")[:2])
    if version < (3, 10):
        yield Finding("Python", facts.hardware.python, "fail", "install Python 3.10 or newer, and start with that")
    else:
        yield Finding("Python", facts.hardware.python)


def check_cpu(facts: Facts) -> Iterator[Finding]:
    machine = facts.hardware
    instructions = ", ".join(machine.instructions) or "no vector instructions that matter"
    yield Finding("CPU", f"{machine.cpu}: {machine.cores} cores, {machine.threads} threads; {instructions}")


def check_memory(facts: Facts) -> Iterator[Finding]:
    free, total = facts.hardware.memory_available_bytes / GIB, facts.hardware.memory_bytes / GIB
    fact = f"{free:.1f} of {total:.1f} GiB free"
    # The bundled 135M model trains in float32 in less than 2 GiB.
    if free < 2:
        yield Finding("memory", fact, "warn", "close other programs: even the smallest model needs about 2 GiB")
    else:
        yield Finding("memory", fact)


def check_disk(facts: Facts) -> Iterator[Finding]:
    free = facts.hardware.disk_free_bytes / GB
    if free < 1:
        yield Finding("disk", f"{free:.1f} GB free", "fail", "make room: a model and its checkpoints need gigabytes")
    elif free < 5:
        yield Finding("disk", f"{free:.1f} GB free", "warn", "make room: Qwen3-0.6B with checkpoints needs about 5 GB")
    else:
        yield Finding("disk", f"{free:.0f} GB free")


def check_gpus(facts: Facts) -> Iterator[Finding]:
    if not facts.hardware.gpus:
        yield Finding("GPU", "none found: Luthier computes on the CPU")
    for gpu in facts.hardware.gpus:
        target = {"nvidia": "compute capability "}.get(gpu.vendor, "") + (gpu.target or "unknown chip")
        memory = f"{gpu.memory_bytes / GIB:.1f} GiB" if gpu.memory_bytes else "memory unknown"
        unified = ", shared with the CPU" if gpu.unified else ""
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        fact = f"{gpu.name}: {target}, {memory}{unified}{driver}"
        if gpu.target:
            yield Finding("GPU", fact)
        else:
            fix = "install AMD's driver; or, if you know the chip, python start.py --torch rocm-gfx… doctor"
            yield Finding("GPU", fact, "warn", fix)


def check_gpu_access(facts: Facts) -> Iterator[Finding]:
    if _amd(facts) and not facts.kfd_usable:
        fix = "sudo usermod -aG render,video $USER, then log out and in"
        yield Finding("GPU access", "this user may not open /dev/kfd, so torch sees no GPU", "warn", fix)


def check_gpu_memory_limit(facts: Facts) -> Iterator[Finding]:
    """Linux gives a GPU half of a shared memory by default. Source: AMD's "RDNA3.5 system optimization"."""
    machine = facts.hardware
    for gpu in _amd(facts):
        if machine.system == "Linux" and gpu.unified and 0 < gpu.memory_bytes < 0.6 * machine.memory_bytes:
            usable, total = gpu.memory_bytes / GIB, machine.memory_bytes / GIB
            limit = f" (TTM limit {machine.gtt_limit_bytes / GIB:.0f} GiB)" if machine.gtt_limit_bytes else ""
            fix = (
                f"pip install amd-debug-tools, then amd-ttm --set {total * 0.75:.0f} and reboot; "
                "and set the GPU's own memory in the BIOS to its smallest value"
            )
            fact = f"{gpu.name} may use {usable:.0f} of the {total:.0f} GiB it shares{limit}"
            yield Finding("GPU memory", fact, "warn", fix)


def check_torch(facts: Facts) -> Iterator[Finding]:
    torch = facts.torch
    if torch.problem:
        yield Finding("torch", f"{torch.version or 'torch'}: {torch.problem}", "fail", REINSTALL)
        return
    built = f"for CUDA {torch.cuda}" if torch.cuda else f"for ROCm {torch.rocm}" if torch.rocm else "for CPUs"
    fact = f"{torch.version}, built {built}"
    gpus = ", ".join(gpu.name for gpu in facts.hardware.gpus if gpu.vendor != "apple")
    if gpus and not (torch.cuda or torch.rocm):
        yield Finding("torch", f"{fact}, beside {gpus}: the GPU stays unused", "warn", _way_to_a_gpu_build(facts))
    elif gpus and not torch.devices and (torch.cuda or torch.rocm):
        fix = f"update the GPU's driver; if that does not help: {REINSTALL}"
        yield Finding("torch", f"{fact}, sees no GPU, but there is {gpus}", "warn", fix)
    else:
        yield Finding("torch", f"{fact}; sees {', '.join(torch.devices)}" if torch.devices else fact)


def check_wheels_chip(facts: Facts) -> Iterator[Finding]:
    """Wheels for another chip load and even list the GPU, then fail or compute nonsense."""
    built_for = facts.device_wheels or tuple(target for target in facts.torch.targets if target.startswith("gfx"))
    for gpu in _amd(facts):
        if gpu.target and built_for and gpu.target not in built_for:
            fact = f"torch was installed for {', '.join(built_for)}, but {gpu.name} is {gpu.target}"
            yield Finding("torch's chip", fact, "warn", f"python start.py --torch rocm-{gpu.target} doctor")


def check_rates(facts: Facts) -> Iterator[Finding]:
    for device, rates in facts.torch.rates.items():
        figures = ", ".join(f"{dtype} {flops_text(rate)}" for dtype, rate in rates.items())
        if not isinstance(rates["float32"], str):
            candidates = {dtype: rates[dtype] for dtype in rates if device != "cpu" or dtype != "float16"}
            figures += f"; {choose_dtype(device, candidates).value} is used"
            yield Finding(f"torch on {device}", figures)
        elif device == "cpu":
            yield Finding("torch on cpu", figures, "fail", REINSTALL)
        else:
            fix = f"update the GPU's driver, or: {REINSTALL}; until then Luthier computes on the CPU"
            yield Finding(f"torch on {device}", figures, "warn", fix)


def check_attention(facts: Facts) -> Iterator[Finding]:
    for gfx in dict.fromkeys(gpu.target for gpu in _amd(facts)):
        if not (facts.torch.rocm and needs_experimental_aotriton(gfx)):
            continue
        if facts.environ.get(AOTRITON) == "1":
            yield Finding("attention", f"{AOTRITON}=1: torch uses its fast attention on {gfx}")
        elif AOTRITON in facts.environ:
            fact = f"{AOTRITON}={facts.environ[AOTRITON]}: torch computes attention the slow way on {gfx}"
            yield Finding("attention", fact, "warn", f"unset it: Luthier then sets {AOTRITON}=1")
        else:
            fact = f"fast attention on {gfx} needs {AOTRITON}=1: Luthier sets it for its runs, other programs do not"
            yield Finding("attention", fact)


def check_gfx_override(facts: Facts) -> Iterator[Finding]:
    override = facts.environ.get("HSA_OVERRIDE_GFX_VERSION")
    if override and _amd(facts):
        fact = f"HSA_OVERRIDE_GFX_VERSION={override} makes the driver lie about the chip: wrong results or hangs"
        fix = "unset it: wheels for the chip itself do not need it"
        yield Finding("gfx override", fact, "warn", fix)


def check_conda(facts: Facts) -> Iterator[Finding]:
    if 0 < facts.conda_libstdcxx < facts.system_libstdcxx:
        fact = (
            f"conda's libstdc++ (GLIBCXX_3.4.{facts.conda_libstdcxx}) is older than the system's "
            f"(3.4.{facts.system_libstdcxx}): GPU drivers may fail to load with a GLIBCXX error"
        )
        fix = "conda install -c conda-forge libstdcxx-ng, or start with the system's Python"
        yield Finding("libstdc++", fact, "warn", fix)


def check_libraries(facts: Facts) -> Iterator[Finding]:
    missing = [library for library in facts.libraries if not library.version]
    other = [library for library in facts.libraries if library.version and not library.fits]
    fitting = [f"{library.name} {library.version}" for library in facts.libraries if library.fits]
    again = "delete .venv and start again: python start.py doctor"
    yield Finding(
        "libraries", ", ".join(fitting) or "Luthier itself is not installed, so nothing says which are needed"
    )
    for library in missing:
        yield Finding("libraries", f"{library.name} is missing", "fail", again)
    for library in other:
        yield Finding("libraries", f"{library.name} {library.version}, wanted {library.wanted}", "warn", again)


def check_hubs(facts: Facts) -> Iterator[Finding]:
    for address, trouble in facts.hubs.items():
        yield Finding("hub", f"{address} does not answer ({trouble})" if trouble else f"{address} answers")
    if facts.hubs and all(facts.hubs.values()):
        fact = "no hub answers; local folders, cached models and the bundled model work all the same"
        fix = "to fetch models, set a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT=https://hf-mirror.com)"
        yield Finding("hub", fact, "warn", fix)


def _amd(facts: Facts) -> list[Gpu]:
    return [gpu for gpu in facts.hardware.gpus if gpu.vendor == "amd"]


def _way_to_a_gpu_build(facts: Facts) -> str:
    """How to get a torch for the GPU, or why there is none."""
    major, minor = (int(part) for part in facts.hardware.python.split(".")[:2])
    ways = plan("auto", facts.hardware.gpus, facts.hardware.system, (major, minor))
    return "; ".join(ways.notes) if ways.builds[0].kind == "cpu" else REINSTALL


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    check_system,
    check_python,
    check_cpu,
    check_memory,
    check_disk,
    check_gpus,
    check_gpu_access,
    check_gpu_memory_limit,
    check_torch,
    check_wheels_chip,
    check_rates,
    check_attention,
    check_gfx_override,
    check_conda,
    check_libraries,
    check_hubs,
)
