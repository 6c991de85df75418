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


def test_usable_cores_are_the_smaller_of_cores_and_quota(hyper_threaded: Path) -> None:
    assert cores.usable_cores(list(range(8)), 1.5, hyper_threaded) == 2
    assert cores.usable_cores(list(range(8)), 0.1, hyper_threaded) == 1
    assert cores.usable_cores(list(range(8)), None, hyper_threaded) == 4
