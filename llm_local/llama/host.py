"""What the machine has for this process: CPUs it may use, memory that can be taken. Any thread.

A container's limits are in its cgroup (version 1 or 2). Each level of the hierarchy limits those below it, so all of
them are read, from the process' own path up to the mount; in a container the path is often not visible, the mount is.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

NO_LIMIT = 2**60
"""What version 1 writes for no limit is a little below 2^63."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that can still be taken, within all limits; swap apart, because weights or KV in it are useless.

    Attributes:
        available: free memory, and what the system gives up for it, such as cached files.
        swap: free swap space.
        total: of the machine, or the cgroup's limit where that is less.
    """

    available: int
    swap: int
    total: int


@dataclass(frozen=True, slots=True)
class Cpus:
    """CPUs of the machine and of this process.

    Attributes:
        machine: those that are online.
        affinity: those that this process may run on.
        quota: CPU seconds a second that the cgroup grants; None is no limit.
    """

    machine: int
    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Threads that find a CPU of their own, at least 1: affinity, cut by the quota.

        ggml's threads spin at barriers, so that one thread more than there are CPUs slows decoding several times.
        """
        return max(1, self.affinity if self.quota is None else min(self.affinity, math.floor(self.quota)))


def cpus(proc: Path = PROC, cgroup: Path = CGROUP) -> Cpus:
    """Return what CPUs there are."""
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return Cpus(machine, affinity, _cpu_quota(proc, cgroup))


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    return cpus().usable


def memory(proc: Path = PROC, cgroup: Path = CGROUP) -> Memory | None:
    """Return the memory that can still be taken; None where that is not known (systems without /proc)."""
    info = _table(proc / "meminfo")
    if "MemAvailable" not in info:
        return None
    available, swap, total = (info.get(name, 0) * 1024 for name in ("MemAvailable", "SwapFree", "MemTotal"))
    for level in _levels("memory", proc, cgroup):
        limit, used = _memory_limit(level), _memory_used(level)
        if limit is not None and used is not None:
            total = min(total, limit)
            available = min(available, max(limit - used, 0))
            swap = min(swap, _swap_left(level, swap))
    return Memory(available, swap, total)


def locked_bytes(proc: Path = PROC) -> int | None:
    """Return how much of this process' memory cannot be swapped out; None where that is not known."""
    locked = _table(proc / "self/status").get("VmLck")
    return None if locked is None else locked * 1024


def give_back_freed_memory() -> None:
    """Give the system what the C library keeps of memory that was freed; nothing where it is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _levels(controller: str, proc: Path, cgroup: Path) -> Iterator[Path]:
    """Yield the folders whose limits hold for this process, its own first."""
    for line in _lines(proc / "self/cgroup"):
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        mounts = [cgroup / names, cgroup / controller] if names else [cgroup / "unified", cgroup]
        mount = next((folder for folder in mounts if folder.is_dir()), None)
        if mount is None:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for length in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:length])


def _cpu_quota(proc: Path, cgroup: Path) -> float | None:
    quotas = []
    for level in _levels("cpu", proc, cgroup):
        fields = next(_lines(level / "cpu.max"), "").split()
        quota, period = fields if len(fields) == 2 else ("max", "100000")
        if quota == "max":
            quota = str(_number(level / "cpu.cfs_quota_us") or -1)
            period = str(_number(level / "cpu.cfs_period_us") or 100000)
        if int(quota) > 0 and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory_limit(level: Path) -> int | None:
    """Return the limit in bytes; at `memory.high` the system slows a process down until it stands still."""
    limits = [_number(level / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    return min((limit for limit in limits if limit is not None and limit < NO_LIMIT), default=None)


def _memory_used(level: Path) -> int | None:
    """Return the bytes in use that the system cannot give up: cached files count as free."""
    used = _number(level / "memory.current")
    prefix = ""
    if used is None:
        used, prefix = _number(level / "memory.usage_in_bytes"), "total_"
    if used is None:
        return None
    stat = _table(level / "memory.stat")
    return max(used - stat.get(f"{prefix}inactive_file", 0) - stat.get(f"{prefix}active_file", 0), 0)


def _swap_left(level: Path, otherwise: int) -> int:
    limit, used = _number(level / "memory.swap.max"), _number(level / "memory.swap.current")
    return otherwise if limit is None else max(limit - (used or 0), 0)


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text().splitlines()
    except OSError:
        return


def _number(path: Path) -> int | None:
    text = next(_lines(path), "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _table(path: Path) -> dict[str, int]:
    """Return the numbers of a file of lines such as `SwapFree: 12 kB` or `active_file 4096`."""
    rows = (line.replace(":", " ").split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
