"""What `luthier doctor` judges: the machine, its torch, the libraries, the hubs. Gathered here, judged in doctor.py."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.hardware.compute import measure_rates
from luthier.hardware.environment import installed_torch, prepare_torch
from luthier.hardware.probe import Hardware, probe

HUB_SECONDS = 3
SYSTEM_LIBSTDCXX = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


@dataclass(frozen=True)
class Torch:
    """The installed torch. `rates` is {device: {dtype: FLOP/s or the error}}, `targets` the chips it has code for."""

    version: str = ""
    cuda: str = ""
    rocm: str = ""
    devices: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    rates: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    problem: str = ""  # why it cannot be imported


@dataclass(frozen=True)
class Library:
    """An installed package, "" if it is missing, and the versions that Luthier asks for."""

    name: str
    version: str
    wanted: str
    fits: bool


@dataclass(frozen=True)
class Facts:
    hardware: Hardware
    torch: Torch
    environ: Mapping[str, str]  # as the user set it, before Luthier adds what torch needs
    libraries: tuple[Library, ...] = ()
    hubs: Mapping[str, str] = field(default_factory=dict)  # address: "" if it answers, else what happened
    device_wheels: tuple[str, ...] = ()  # chips whose AMD device wheels are installed
    kfd_usable: bool = True  # whether this user may open the AMD driver's device
    conda_libstdcxx: int = 0  # the n of the newest GLIBCXX_3.4.n that conda's libstdc++ knows; 0 without conda
    system_libstdcxx: int = 0


def gather() -> Facts:
    """All facts, in a few seconds: most of them go into measuring dtypes that the CPU has no instructions for."""
    environ = dict(os.environ)
    hardware = probe()
    hubs: dict[str, str] = {}
    asking = threading.Thread(target=lambda: hubs.update(ask_hubs(environ)), daemon=True)
    asking.start()
    prepare_torch(gpus=hardware.gpus)
    torch = look_at_torch()
    asking.join()
    return Facts(
        hardware=hardware,
        torch=torch,
        environ=environ,
        libraries=look_at_libraries(),
        hubs=hubs,
        device_wheels=tuple(sorted(_device_wheels())),
        kfd_usable=not Path("/dev/kfd").exists() or os.access("/dev/kfd", os.R_OK | os.W_OK),
        conda_libstdcxx=newest_glibcxx(Path(sys.base_prefix) / "lib") if _is_conda() else 0,
        system_libstdcxx=max(newest_glibcxx(Path(folder)) for folder in SYSTEM_LIBSTDCXX),
    )


def look_at_torch() -> Torch:
    """Import torch and let it compute on the CPU and on the GPU that it sees."""
    if not installed_torch():
        return Torch(problem="it is not installed")
    try:
        import torch
    except (ImportError, OSError) as error:
        return Torch(version=installed_torch(), problem=str(error).strip().split("\n")[0])
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    computing = ["cpu", *(["cuda"] if devices else []), *(["mps"] if torch.backends.mps.is_available() else [])]
    return Torch(
        version=torch.__version__,
        cuda=torch.version.cuda or "",
        rocm=torch.version.hip or "",
        devices=tuple(devices),
        targets=tuple(torch.cuda.get_arch_list()),
        rates={device: measure_rates(device) for device in computing},
    )


def look_at_libraries() -> tuple[Library, ...]:
    """What Luthier's own metadata asks for, against what is installed."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("luthier") or []]
    except importlib.metadata.PackageNotFoundError:
        return ()
    needed = [
        requirement for requirement in wanted if not requirement.marker or requirement.marker.evaluate({"extra": ""})
    ]
    found = [_library(requirement.name, str(requirement.specifier)) for requirement in needed]
    return tuple(dict.fromkeys(found))


def ask_hubs(environ: Mapping[str, str]) -> dict[str, str]:
    """Whether the model hubs answer, all asked at once, within HUB_SECONDS."""
    addresses = {
        environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn",
        environ.get("HF_ENDPOINT") or "https://huggingface.co",
    }
    found = dict.fromkeys(sorted(addresses, reverse=True), f"no answer within {HUB_SECONDS} s")

    def ask(address: str) -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
            found[address] = ""
        except urllib.error.HTTPError:  # it spoke: that will do
            found[address] = ""
        except (OSError, ValueError) as error:
            found[address] = str(getattr(error, "reason", error))

    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HUB_SECONDS)
    return dict(found)


def newest_glibcxx(folder: Path) -> int:
    """The n of the newest GLIBCXX_3.4.n in the folder's libstdc++; 0 if there is none."""
    try:
        library = (folder / "libstdc++.so.6").read_bytes()
    except OSError:
        return 0
    return max((int(n) for n in re.findall(rb"GLIBCXX_3\.4\.(\d+)", library)), default=0)


def _library(name: str, wanted: str) -> Library:
    from packaging.specifiers import SpecifierSet

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Library(name, "", wanted, fits=False)
    return Library(name, version, wanted, SpecifierSet(wanted).contains(version, prereleases=True))


def _device_wheels() -> set[str]:
    names = [str(found.metadata["Name"]) for found in importlib.metadata.distributions()]
    return {match.group(1) for name in names if (match := re.search(r"device[-_](gfx[0-9a-f]+)$", name))}


def _is_conda() -> bool:
    return platform.system() == "Linux" and (Path(sys.base_prefix) / "conda-meta").is_dir()
