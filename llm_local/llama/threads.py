"""How many CPU threads a step gets while other processes want the CPUs, too. Engine thread.

The threads of a step meet at hundreds of barriers, so that a step is as slow as the slowest of them: one thread that
shares its CPU with another process holds up all others, which burn their time spinning. One thread fewer costs its
share only (figures are in docs/performance.md).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import llama_cpp

PROC_STAT = Path("/proc/stat")

LOOK_EVERY_S = 0.5
LONGEST_WINDOW_S = 3.0
"""What others used before a longer pause says nothing about now."""

SPARE = 0.4
"""Share of a CPU that others may use before a thread makes way: clients, an event loop, a shell."""


class ThreadGovernor:
    """Says how many threads to use, from what others use of the CPUs that this process may run on.

    Args:
        most: threads when nobody else is there.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.current = most
        self._cpus = {f"cpu{cpu}" for cpu in _affinity()}
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
        self._looked_at = 0.0
        self._busy_s = 0.0
        self._own_s = 0.0

    def look(self) -> int:
        """Return how many threads the next step should have; looks at the system twice a second."""
        now = time.monotonic()
        elapsed = now - self._looked_at
        if elapsed < LOOK_EVERY_S or self.most == 1:
            return self.current
        busy_s = self._busy()
        own_s = time.process_time()
        if busy_s is None:
            self.current = self.most
        elif elapsed <= LONGEST_WINDOW_S:
            others = max((busy_s - self._busy_s) - (own_s - self._own_s), 0.0) / elapsed
            self.current = min(max(int(len(self._cpus) - others + SPARE), 1), self.most)
        self._looked_at, self._busy_s, self._own_s = now, busy_s or 0.0, own_s
        return self.current

    def _busy(self) -> float | None:
        """Return the seconds that the CPUs have worked since the system started; None where that is not known."""
        try:
            lines = PROC_STAT.read_text().splitlines()
        except OSError:
            return None
        ticks = 0
        for line in lines:
            name, *fields = line.split()
            if name in self._cpus:
                user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
                ticks += user + nice + system + irq + softirq + steal
        return ticks * self._tick_s


class ContextThreads:
    """The threads of a native context: as many as find a CPU of their own.

    Args:
        context: native context, made with these threads.
        n: threads of a small batch.
        n_batch: of a large one; None for the same.
    """

    def __init__(self, context: Any, n: int, n_batch: int | None = None) -> None:
        self._context = context
        self._governor = ThreadGovernor(n)
        self._n = n
        self._n_batch = n_batch or n

    def settle(self) -> None:
        """Set them for the next decode."""
        n, most = self._governor.look(), self._governor.most
        if n != self._n:
            self._n = n
            llama_cpp.llama_set_n_threads(self._context, n, max(round(self._n_batch * n / most), 1))


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
