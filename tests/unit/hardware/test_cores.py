from __future__ import annotations

from pathlib import Path

import pytest

from luthier.hardware import cores


@pytest.fixture
def hyper_threaded(tmp_path: Path) -> Path:
    """Eight hardware threads on four cores: thread n shares its core with n + 4."""
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    return tmp_path


def test_two_hyper_threads_of_a_core_count_once(hyper_threaded: Path) -> None:
    assert cores.physical_cores(list(range(8)), hyper_threaded) == 4
    assert cores.physical_cores([0, 4], hyper_threaded) == 1
    assert cores.physical_cores([0, 1, 5], hyper_threaded) == 2


def test_without_a_topology_no_more_than_the_allowed_threads(tmp_path: Path) -> None:
    assert cores.physical_cores([0], tmp_path) == 1


@pytest.mark.parametrize(("text", "quota"), [("150000 100000", 1.5), ("max 100000", None)])
def test_quota_of_cgroup_v2(tmp_path: Path, text: str, quota: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert cores.cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("text", "quota"), [("200000", 2.0), ("-1", None)])
def test_quota_of_cgroup_v1(tmp_path: Path, text: str, quota: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(text + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.cpu_quota(tmp_path) == quota


def test_no_cgroup_no_quota(tmp_path: Path) -> None:
    assert cores.cpu_quota(tmp_path) is None


def test_usable_cores_are_the_smaller_of_cores_and_quota(hyper_threaded: Path, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cores.usable_cores(list(range(8)), hyper_threaded, tmp_path) == 2
    (tmp_path / "cpu.max").write_text("10000 100000\n")
    assert cores.usable_cores(list(range(8)), hyper_threaded, tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores.usable_cores(list(range(8)), hyper_threaded, tmp_path) == 4
