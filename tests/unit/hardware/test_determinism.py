"""The same bits each time: where they are had for nothing, where they are asked for, and where they cannot be had."""

from __future__ import annotations

import pytest
import torch

from luthier.choice import Choice
from luthier.errors import Problem, RecipeError
from luthier.hardware.determinism import WORKSPACE, deterministic, pick_deterministic
from luthier.hardware.environment import prepare_torch


@pytest.mark.parametrize("asked", [False, True])
def test_a_cpu_always_repeats(asked: bool) -> None:
    reason = "a CPU adds in the same order each time, with the same number of threads"
    assert pick_deterministic("cpu", asked=asked) == Choice(True, reason)


def test_a_gpu_repeats_when_it_is_asked_to() -> None:
    assert pick_deterministic("cuda", asked=True) == Choice(True, "the recipe asks for it; some kernels are slower")
    reason = "a GPU may add in another order each time; train.deterministic: true repeats every bit"
    assert pick_deterministic("cuda", asked=False) == Choice(False, reason)


def test_a_mac_cannot() -> None:
    with pytest.raises(RecipeError) as caught:
        pick_deterministic("mps", asked=True)
    what = "torch has no deterministic kernels for the Mac's GPU"
    fix = "set it to false, or model.device: cpu"
    assert caught.value.problems == (Problem("train.deterministic", what, fix),)


def test_torch_is_told_and_is_itself_again() -> None:
    def state() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark

    before = state()
    with deterministic(asked=False):
        assert state() == before
    with deterministic(asked=True):
        assert state() == (True, True, False)
    assert state() == before


def test_cublas_is_told_before_torch_is_imported() -> None:
    environ: dict[str, str] = {}
    chosen = prepare_torch(environ, [], "2.13.0+cu130", deterministic=True)
    assert chosen[WORKSPACE] == Choice(":4096:8", "train.deterministic asks for it")
    assert environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    environ = {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    chosen = prepare_torch(environ, [], "2.13.0+cu130", deterministic=True)
    assert chosen[WORKSPACE] == Choice(":16:8", "set by you")
    assert WORKSPACE not in prepare_torch({}, [], "2.13.0+cpu", deterministic=True)
