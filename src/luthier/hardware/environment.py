"""What torch must find in the environment before it is imported, and how it is imported without delay."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence

from luthier.choice import Choice
from luthier.hardware.determinism import WORKSPACE, WORKSPACE_VALUE
from luthier.hardware.gpus import find_amd_gpus
from luthier.hardware.parse import Gpu
from luthier.hardware.torch_builds import load_table

AOTRITON = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
KERNELS, KERNELS_KEPT = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", 64


def prepare_torch(
    environ: MutableMapping[str, str] = os.environ,
    gpus: Sequence[Gpu] | None = None,
    torch_version: str | None = None,
    *,
    deterministic: bool = False,
) -> dict[str, Choice[str]]:
    """Set what this machine's torch needs, and return it with reasons, for the caller to show and record.

    Call it before the first `import torch`. A variable that the user has set, to whatever value, is left alone.
    """
    build = torch_version or installed_torch()
    # oneDNN writes a kernel of 1.4 MB for each shape that it multiplies in bfloat16. A layer needs some dozens, and the
    # next one the same: no slower, and 0.3 GB less after six steps of SmolLM2.
    chosen = {KERNELS: Choice(str(KERNELS_KEPT), "a CPU's kernels for as many shapes are kept, in the place of 1,024")}
    if deterministic and not build.endswith("+cpu"):
        chosen[WORKSPACE] = Choice(WORKSPACE_VALUE, "train.deterministic asks for it")
    targets = [gpu.target for gpu in (find_amd_gpus() if gpus is None else gpus)] if "rocm" in build else []
    for gfx in filter(needs_experimental_aotriton, targets):
        # torch 2.13 computes attention with the slow math kernel on these chips unless it is told that it may use
        # AOTriton's; ROCm issue 6034 measured a factor of 19 on gfx1151.
        chosen[AOTRITON] = Choice("1", f"torch has fast attention for {gfx}, but uses it only when asked")
    for name in chosen.keys() & environ.keys():
        chosen[name] = Choice(environ[name], "set by you")
    environ.update({name: choice.value for name, choice in chosen.items()})
    return chosen


def needs_experimental_aotriton(gfx: str) -> bool:
    return str(load_table()["gfx"].get(gfx, {}).get("aotriton")) == "experimental"


def installed_torch() -> str:
    """The installed torch's version without importing it, "" if there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """For the imports of torch and transformers in a fresh process: a fifth quicker, without the garbage collector.

    It would go through their two million objects again and again and find nothing. Nor does it look at them later.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
