from __future__ import annotations

from pathlib import Path

import pytest

from luthier.hardware.cgroup import Cgroups

GIB = 1 << 30


def cgroups(tmp_path: Path, membership: str, files: dict[str, str]) -> Cgroups:
    (tmp_path / "self").write_text(membership)
    for name, text in files.items():
        file = tmp_path / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return Cgroups(tmp_path / "mount", tmp_path / "self")


@pytest.mark.parametrize(("text", "quota"), [("150000 100000", 1.5), ("max 100000", None)])
def test_cpu_quota_of_v2(tmp_path: Path, text: str, quota: float | None) -> None:
    assert cgroups(tmp_path, "0::/\n", {"cpu.max": text}).cpu_quota() == quota


@pytest.mark.parametrize(("text", "quota"), [("200000", 2.0), ("-1", None)])
def test_cpu_quota_of_v1(tmp_path: Path, text: str, quota: float | None) -> None:
    files = {"cpu/cpu.cfs_quota_us": text, "cpu/cpu.cfs_period_us": "100000"}
    assert cgroups(tmp_path, "2:cpu,cpuacct:/docker/abc\n", files).cpu_quota() == quota


def test_a_limit_on_a_parent_holds_too(tmp_path: Path) -> None:
    files = {"user.slice/cpu.max": "300000 100000", "user.slice/app.scope/cpu.max": "max 100000"}
    assert cgroups(tmp_path, "0::/user.slice/app.scope\n", files).cpu_quota() == 3.0


def test_memory_left_counts_file_cache_as_free(tmp_path: Path) -> None:
    files = {
        "memory.max": str(8 * GIB),
        "memory.current": str(6 * GIB),
        "memory.stat": f"anon {GIB}\ninactive_file {3 * GIB}",
    }
    assert cgroups(tmp_path, "0::/\n", files).memory_room() == (8 * GIB, 5 * GIB)


def test_memory_of_v1_and_its_huge_number_for_no_limit(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"}
    assert cgroups(tmp_path, "4:memory:/\n", files).memory_room() is None
    files["memory/memory.limit_in_bytes"] = str(4 * GIB)
    files["memory/memory.usage_in_bytes"] = str(GIB)
    assert cgroups(tmp_path, "4:memory:/\n", files).memory_room() == (4 * GIB, 3 * GIB)


def test_no_control_groups_no_limits(tmp_path: Path) -> None:
    none = Cgroups(tmp_path / "mount", tmp_path / "self")
    assert (none.cpu_quota(), none.memory_room()) == (None, None)
