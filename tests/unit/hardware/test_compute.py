from __future__ import annotations

import pytest
import torch

from luthier.choice import Choice
from luthier.errors import RecipeError
from luthier.hardware import compute


def test_bfloat16_without_instructions_for_it_loses_to_float32() -> None:
    choice = compute.choose_dtype("cpu", {"float32": 143e9, "bfloat16": 1.3e9})
    assert choice == Choice(
        "float32", "no half precision is faster (measured on cpu: float32 143 GFLOP/s, bfloat16 1.3 GFLOP/s)"
    )


def test_bfloat16_wins_where_the_cpu_has_amx() -> None:
    choice = compute.choose_dtype("cpu", {"float32": 150e9, "bfloat16": 600e9})
    assert choice == Choice(
        "bfloat16",
        "4.0 times as fast as float32 (measured on cpu: float32 150 GFLOP/s, bfloat16 600 GFLOP/s)",
    )


def test_bfloat16_goes_before_a_faster_float16() -> None:
    assert compute.choose_dtype("cuda", {"float32": 6e12, "bfloat16": 30e12, "float16": 31e12}).value == "bfloat16"


@pytest.mark.parametrize("bfloat16", ["wrong result: relative error 1", 4e12])
def test_float16_is_for_gpus_without_a_real_bfloat16(bfloat16: float | str) -> None:
    assert compute.choose_dtype("cuda", {"float32": 4e12, "bfloat16": bfloat16, "float16": 25e12}).value == "float16"


def test_a_device_that_cannot_compute_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        compute.choose_dtype("cuda", {"float32": "HIP error: invalid device function", "bfloat16": 1.0})
    assert str(caught.value) == (
        "model.device: cuda cannot compute: HIP error: invalid device function\n  fix: run: luthier doctor"
    )


def test_the_cpu_is_chosen_where_torch_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_accelerators", list)
    assert compute.pick_device() == Choice("cpu", f"torch {torch.__version__} sees no GPU")


def test_a_gpu_that_computes_is_chosen_and_a_broken_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_accelerators", lambda: ["cuda"])
    monkeypatch.setattr(compute, "_device_name", lambda device: "AMD Radeon Graphics")
    monkeypatch.setattr(compute, "measure_rate", lambda device, dtype: 12.3e12)
    assert compute.pick_device() == Choice("cuda", "AMD Radeon Graphics computes: float32 at 12.3 TFLOP/s")
    monkeypatch.setattr(compute, "measure_rate", lambda device, dtype: "HIP error")
    assert compute.pick_device() == Choice("cpu", "AMD Radeon Graphics cannot compute (HIP error)")


def test_an_asked_device_is_obeyed_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compute.pick_device("cpu") == Choice("cpu", "the recipe asks for it")
    monkeypatch.setattr(compute, "measure_rate", lambda device, dtype: "no such device")
    with pytest.raises(RecipeError) as caught:
        compute.pick_device("mps")
    assert str(caught.value) == (
        f"model.device: mps cannot compute with torch {torch.__version__}: no such device\n"
        "  fix: use model.device: auto, and see: luthier doctor"
    )


def test_an_asked_dtype_is_obeyed_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "measure_rate", lambda device, dtype: 3e9)
    assert compute.pick_dtype("cpu", "float16") == Choice(
        "float16", "the recipe asks for it; it multiplies at 3 GFLOP/s on cpu"
    )
    monkeypatch.setattr(compute, "measure_rate", lambda device, dtype: "not implemented for 'Half'")
    with pytest.raises(RecipeError) as caught:
        compute.pick_dtype("cpu", "float16")
    assert str(caught.value) == (
        "model.dtype: cpu cannot compute in float16: not implemented for 'Half'\n  fix: use model.dtype: auto"
    )


def test_this_cpu_really_computes_and_the_rate_is_plausible() -> None:
    rate = compute.measure_rate("cpu", "float32")
    assert isinstance(rate, float)
    assert 1e8 < rate < 1e15


def test_a_kernel_that_writes_zeros_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = compute._product_and_gradient

    def zeros_in_bfloat16(left: torch.Tensor, right: torch.Tensor, device: str, dtype: str) -> list[torch.Tensor]:
        return [m * (dtype != "bfloat16") for m in real(left, right, device, dtype)]

    monkeypatch.setattr(compute, "_product_and_gradient", zeros_in_bfloat16)
    compute.measure_rate.cache_clear()
    assert compute.measure_rate("cpu", "bfloat16") == "wrong result: relative error 1"
    compute.measure_rate.cache_clear()


def test_a_device_that_is_not_there_gives_its_error_as_text() -> None:
    assert compute.measure_rate("nosuchdevice", "float32").startswith(  # type: ignore[union-attr]
        "Expected one of cpu, cuda"
    )


def test_threads_follow_the_users_omp_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert compute.pick_threads() == Choice(3, "OMP_NUM_THREADS is set")


def test_threads_are_physical_cores_within_the_containers_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(compute, "usable_cores", lambda cpus, quota: 2)
    monkeypatch.setattr(compute, "allowed_cpus", lambda: list(range(16)))
    monkeypatch.setattr(compute, "cpu_quota", lambda: 1.5)
    assert compute.pick_threads() == Choice(
        2,
        "one a physical core: 2 behind the 16 hardware threads this process may use, "
        "limited to 1.5 CPUs by the container",
    )
