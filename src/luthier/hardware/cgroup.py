"""What a container or a systemd slice lets this process use (cgroup v1 and v2). No limit elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cgroups:
    """The control groups of this process. The paths are parameters for tests."""

    mount: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")

    def cpu_quota(self) -> float | None:
        """CPUs' worth of time allowed; None without a limit."""
        quotas = [_quota(folder) for folder in self._folders("cpu")]
        return min((quota for quota in quotas if quota is not None), default=None)

    def memory_room(self) -> tuple[int, int] | None:
        """(limit, bytes left under it) of the tightest group; None without a limit. File cache counts as free."""
        rooms = [_memory(folder) for folder in self._folders("memory")]
        return min((room for room in rooms if room is not None), key=lambda room: room[1], default=None)

    def _folders(self, controller: str) -> Iterator[Path]:
        """Folders that limit this process, its own first: a limit on any parent holds too."""
        for line in _read(self.membership).splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            base = self.mount / controller if controllers else self.mount
            folder = base / path.lstrip("/")
            while folder != base:
                yield folder
                folder = folder.parent
            yield base


def _quota(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    quota, period = quota or _read(folder / "cpu.cfs_quota_us"), period or _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _memory(folder: Path) -> tuple[int, int] | None:
    limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
    used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
    if not (limit.isdigit() and used.isdigit()) or int(limit) > 1 << 60:  # v1 writes "none" as a huge number
        return None
    stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
    cache = int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
    return int(limit), max(0, int(limit) - int(used) + cache)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
