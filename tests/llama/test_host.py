"""CPUs and memory from invented /proc and cgroup trees."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import pytest

from llm_local.llama import host

MEMINFO = "MemTotal: 16000 kB\nMemFree: 100 kB\nMemAvailable: 8000 kB\nSwapFree: 2000 kB\n"
KIB = 1024


def tree(folder: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Write files below `proc` and `cgroup`; return both."""
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": "", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "cgroup").mkdir(exist_ok=True)
    return folder / "proc", folder / "cgroup"


V2 = {"proc/self/cgroup": "0::/kube/pod/box\n"}
V1 = {"proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"}
V1_NAMED = {"proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n"}

QUOTAS = [
    ("no cgroup", {}, None),
    ("no limit", {**V2, "cgroup/kube/pod/box/cpu.max": "max 100000\n"}, None),
    ("own path", {**V2, "cgroup/kube/pod/box/cpu.max": "250000 100000\n"}, 2.5),
    (
        "the parent's",
        {**V2, "cgroup/kube/pod/box/cpu.max": "max 100000", "cgroup/kube/pod/cpu.max": "150000 100000"},
        1.5,
    ),
    (
        "the least of all levels",
        {**V2, "cgroup/kube/pod/box/cpu.max": "400000 100000", "cgroup/kube/cpu.max": "300000 100000"},
        3.0,
    ),
    ("a path that the container does not see", {**V2, "cgroup/cpu.max": "200000 100000"}, 2.0),
    ("the root's own", {"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "50000 100000"}, 0.5),
    (
        "version 1",
        {
            **V1,
            "cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000",
            "cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
        },
        3.0,
    ),
    (
        "version 1 under the controller's name, seen from the container",
        {**V1_NAMED, "cgroup/cpu/cpu.cfs_quota_us": "50000", "cgroup/cpu/cpu.cfs_period_us": "50000"},
        1.0,
    ),
    ("version 1 without limit", {**V1, "cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1"}, None),
    (
        "both versions",
        {"proc/self/cgroup": "1:name=systemd:/x\n0::/x\n", "cgroup/unified/x/cpu.max": "70000 10000"},
        7.0,
    ),
]


@pytest.mark.parametrize(("case", "files", "quota"), QUOTAS, ids=[case[0] for case in QUOTAS])
def test_the_cpu_quota_is_found(tmp_path: Path, case: str, files: dict[str, str], quota: float | None) -> None:
    assert host.cpus(*tree(tmp_path, files)).quota == quota


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"), [(8, None, 8), (8, 2.7, 2), (2, 6.0, 2), (8, 0.5, 1), (1, None, 1)]
)
def test_threads_follow_affinity_and_quota(affinity: int, quota: float | None, usable: int) -> None:
    assert host.Cpus(8, affinity, quota).usable == usable


def test_affinity_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert host.cpus(*tree(tmp_path, {})).affinity == len(os.sched_getaffinity(0))


def test_memory_without_limits_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert host.memory(*tree(tmp_path, {})) == host.Memory(8000 * KIB, 2000 * KIB, 16000 * KIB)


def test_memory_is_unknown_without_proc(tmp_path: Path) -> None:
    assert host.memory(tmp_path, tmp_path) is None


def test_cached_files_count_as_free_within_a_limit(tmp_path: Path) -> None:
    box = "cgroup/kube/pod/box/memory."
    stat = f"anon {1000 * KIB}\nfile {2500 * KIB}\ninactive_file {2000 * KIB}\nactive_file {400 * KIB}\n"
    files = {f"{box}max": f"{4096 * KIB}", f"{box}current": f"{3500 * KIB}", f"{box}stat": stat, f"{box}swap.max": "0"}
    found = host.memory(*tree(tmp_path, {**V2, **files}))
    assert found == host.Memory((4096 - 1100) * KIB, 0, 4096 * KIB)


@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
def test_the_limit_of_a_level_above_holds(tmp_path: Path, name: str) -> None:
    files = {
        "cgroup/kube/pod/box/memory.max": "max",
        "cgroup/kube/pod/box/memory.current": "1",
        f"cgroup/kube/pod/{name}": f"{5000 * KIB}",
        "cgroup/kube/pod/memory.current": f"{3000 * KIB}",
    }
    found = host.memory(*tree(tmp_path, {**V2, **files}))
    assert found is not None
    assert (found.available, found.total) == (2000 * KIB, 5000 * KIB)


def test_memory_of_version_1(tmp_path: Path) -> None:
    here = "cgroup/memory/docker/abc/memory."
    stat = f"inactive_file 1\ntotal_inactive_file {500 * KIB}\ntotal_active_file {500 * KIB}\n"
    files = {f"{here}limit_in_bytes": f"{3000 * KIB}", f"{here}usage_in_bytes": f"{2000 * KIB}", f"{here}stat": stat}
    found = host.memory(*tree(tmp_path, {**V1, **files}))
    assert found is not None
    assert found.available == 2000 * KIB
    unlimited = {**files, f"{here}limit_in_bytes": "9223372036854771712"}
    assert host.memory(*tree(tmp_path, {**V1, **unlimited})) == host.Memory(8000 * KIB, 2000 * KIB, 16000 * KIB)


def test_locked_memory_is_read(tmp_path: Path) -> None:
    proc, _ = tree(tmp_path, {"proc/self/status": "Name:\tx\nVmLck:\t    12 kB\n"})
    assert host.locked_bytes(proc) == 12 * KIB
    assert host.locked_bytes(tmp_path) is None


def resident() -> int:
    """Bytes of this process' own memory."""
    return host._table(host.PROC / "self/status")["RssAnon"] * KIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_freed_memory_goes_back_to_the_system() -> None:
    host.give_back_freed_memory()
    before = resident()
    taken = [b"x" * 4000 + b"%d" % n for n in range(20_000)]
    kept = taken[::100]  # So that what is freed is not at the end of the heap, from where it goes back by itself.
    del taken
    assert resident() - before > 40 << 20
    host.give_back_freed_memory()
    assert resident() - before < 20 << 20
    assert len(kept) == 200


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    host.give_back_freed_memory()
