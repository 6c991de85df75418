"""What this machine computes fastest, decided by measuring it.

torch's own answers are not enough: `torch.cuda.is_bf16_supported()` says yes on every ROCm build, and a CPU without
AVX512_BF16 or AMX multiplies bfloat16 a hundred times slower than float32. So a small product is run forward and
backward in each dtype, its result compared with float32 on the CPU, and its rate taken.
"""

from __future__ import annotations

import functools
import os
import time
import warnings
from typing import TYPE_CHECKING

from luthier.choice import Choice
from luthier.errors import Problem, RecipeError
from luthier.hardware.cores import allowed_cpus, cpu_quota, usable_cores

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
WORTH_IT = 1.2  # a half-precision dtype must be this much faster than float32 to be chosen
TIMED_SECONDS, TIMED_RUNS = 0.05, 3  # at least; the best run counts, as others may use the machine
CHECKED_SIZE = 256
TIMED_SIZE = {"cpu": 512}
TIMED_SIZE_GPU = 2048
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 5e-3}  # relative error of a 256-long sum, with room for TF32


def pick_device(asked: str = "auto") -> Choice[str]:
    """Where to compute: `cuda` (NVIDIA or ROCm), `mps` or `cpu`. Raises RecipeError if the asked one cannot compute."""
    import torch

    if asked != "auto":
        rate = measure_rate(asked, "float32")
        if isinstance(rate, str):
            what = f"{asked} cannot compute with torch {torch.__version__}: {rate}"
            raise RecipeError(Problem("model.device", what, "use model.device: auto, and see: luthier doctor"))
        return Choice(asked, "the recipe asks for it")
    broken = []
    for device in _accelerators():
        rate = measure_rate(device, "float32")
        if not isinstance(rate, str):
            return Choice(device, f"{_device_name(device)} computes: float32 at {flops_text(rate)}")
        broken.append(f"{_device_name(device)} cannot compute ({rate})")
    return Choice("cpu", "; ".join(broken) or f"torch {torch.__version__} sees no GPU")


def pick_dtype(device: str, asked: str = "auto") -> Choice[str]:
    """`float32`, `bfloat16` or `float16`: the first half precision that is much faster than float32, else float32.

    bfloat16 comes first because it needs no loss scaling; float16 is considered on GPUs alone.
    Raises RecipeError if the device cannot compute, or not in the asked dtype.
    """
    if asked != "auto":
        rate = measure_rate(device, asked)
        if isinstance(rate, str):
            raise RecipeError(
                Problem("model.dtype", f"{device} cannot compute in {asked}: {rate}", "use model.dtype: auto")
            )
        return Choice(asked, f"the recipe asks for it; it multiplies at {flops_text(rate)} on {device}")
    candidates = DTYPES[:2] if device == "cpu" else DTYPES
    return choose_dtype(device, {dtype: measure_rate(device, dtype) for dtype in candidates})


def choose_dtype(device: str, rates: dict[str, float | str]) -> Choice[str]:
    """The decision of `pick_dtype`, given the measured rates (or errors) of float32 and the candidates in order."""
    float32 = rates["float32"]
    if isinstance(float32, str):
        raise RecipeError(Problem("model.device", f"{device} cannot compute: {float32}", "run: luthier doctor"))
    figures = f"measured on {device}: " + ", ".join(f"{dtype} {flops_text(rate)}" for dtype, rate in rates.items())
    for dtype, rate in rates.items():
        if not isinstance(rate, str) and rate > WORTH_IT * float32:
            return Choice(dtype, f"{rate / float32:.1f} times as fast as float32 ({figures})")
    return Choice("float32", f"no half precision is faster ({figures})")


def pick_threads() -> Choice[int]:
    """CPU threads for torch: one a usable physical core, as two hyper-threads share one multiplier."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return Choice(int(asked), "OMP_NUM_THREADS is set")
    cpus, quota = allowed_cpus(), cpu_quota()
    cores = usable_cores(cpus, quota)
    limit = f", limited to {quota:g} CPUs by the container" if quota is not None else ""
    reason = f"one a physical core: {cores} behind the {len(cpus)} hardware threads this process may use{limit}"
    return Choice(cores, reason)


def measure_rates(device: str) -> dict[str, float | str]:
    """For each dtype: floating point operations a second of a product forward and backward, or why it fails."""
    return {dtype: measure_rate(device, dtype) for dtype in DTYPES}


@functools.cache
def measure_rate(device: str, dtype: str) -> float | str:
    """FLOP/s of one square matrix product forward and backward, or the error as text. Measured once a process."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")  # autograd's thread begins with that
            error = _relative_error(device, dtype)
        if not error <= TOLERANCE[dtype]:  # also true of NaN
            return f"wrong result: relative error {error:.2g}"
        return _timed(device, dtype)
    # How torch says that a device or dtype cannot do it differs by backend; the answer to the caller is its text.
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as failure:
        return str(failure).strip().split("\n")[0] or type(failure).__name__


def flops_text(rate: float | str) -> str:
    """`143 GFLOP/s`, or `fails: …`."""
    if isinstance(rate, str):
        return f"fails: {rate}"
    scale, unit = (1e12, "TFLOP/s") if rate >= 1e12 else (1e9, "GFLOP/s")
    return f"{rate / scale:.3g} {unit}"


def _relative_error(device: str, dtype: str) -> float:
    """Largest of product's and gradient's distance from float32 on the CPU. Finds kernels that silently write zeros."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(CHECKED_SIZE, CHECKED_SIZE, generator=generator) for _ in range(2))
    found = _product_and_gradient(left, right, device, dtype)
    expected = _product_and_gradient(left, right, "cpu", "float32")
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def _product_and_gradient(left: torch.Tensor, right: torch.Tensor, device: str, dtype: str) -> list[torch.Tensor]:
    import torch

    a, b = (m.to(device, getattr(torch, dtype)).requires_grad_() for m in (left, right))
    product = a @ b
    (gradient,) = torch.autograd.grad(product, a, torch.ones_like(product))
    return [m.detach().to("cpu", torch.float32) for m in (product, gradient)]


def _timed(device: str, dtype: str) -> float:
    import torch

    size = TIMED_SIZE.get(device, TIMED_SIZE_GPU)
    a, b = (torch.randn(size, size).to(device, getattr(torch, dtype)).requires_grad_() for _ in range(2))
    upstream = torch.ones_like(a)
    runs: list[float] = []
    while len(runs) < TIMED_RUNS or sum(runs) < TIMED_SECONDS:
        began = time.perf_counter()
        torch.autograd.grad(a @ b, (a, b), upstream)
        _wait_for(device)
        runs.append(time.perf_counter() - began)
    return 3 * 2 * size**3 / min(runs)


def _wait_for(device: str) -> None:
    """GPU work is only queued: wait until it is done, so that a clock means something and errors surface here."""
    import torch

    if device != "cpu":
        torch.accelerator.synchronize()


def _accelerators() -> list[str]:
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [device for device, there in found.items() if there]


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(0) if device == "cuda" else "the Mac's GPU"
