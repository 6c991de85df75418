from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.choice import Choice
from luthier.hardware.environment import AOTRITON, KERNELS, prepare_torch
from luthier.hardware.parse import Gpu

ROCM = "2.13.0+rocm10.0.0"
USUAL = {KERNELS: Choice("64", "a CPU's kernels for as many shapes are kept, in the place of 1,024")}


def amd(target: str) -> list[Gpu]:
    return [Gpu("AMD Radeon Graphics", "amd", target)]


@pytest.mark.parametrize("target", ["gfx1151", "gfx1150", "gfx1101", "gfx1102", "gfx1200"])
def test_chips_whose_fast_attention_must_be_asked_for(target: str) -> None:
    environ: dict[str, str] = {}
    chosen = prepare_torch(environ, amd(target), ROCM)
    reason = f"torch has fast attention for {target}, but uses it only when asked"
    assert chosen == {**USUAL, AOTRITON: Choice("1", reason)}
    assert environ == {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": "1"}


@pytest.mark.parametrize("target", ["gfx1100", "gfx942", "gfx1103", "gfx902", ""])
def test_other_chips_need_nothing(target: str) -> None:
    environ: dict[str, str] = {}
    assert prepare_torch(environ, amd(target), ROCM) == USUAL
    assert list(environ) == [KERNELS]


def test_the_users_value_stays() -> None:
    environ = {AOTRITON: "0", KERNELS: "1024"}
    assert prepare_torch(environ, amd("gfx1151"), ROCM) == {
        AOTRITON: Choice("0", "set by you"),
        KERNELS: Choice("1024", "set by you"),
    }
    assert environ == {AOTRITON: "0", KERNELS: "1024"}


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.13.0+cu130"])
def test_other_builds_of_torch_need_no_more(version: str) -> None:
    assert prepare_torch({}, amd("gfx1151"), version) == USUAL


def test_libraries_are_imported_without_the_garbage_collector() -> None:
    """In a process of its own: this one has torch already."""
    code = (
        "import gc; from luthier.hardware.environment import importing\n"
        "with importing(): inside = gc.isenabled()\n"
        "print(inside, gc.isenabled(), gc.get_freeze_count() > 0)"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]
