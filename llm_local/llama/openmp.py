"""How ggml's CPU threads wait for each other. Set before llama.cpp is loaded; the reason is in `SPIN_COUNT`."""

from __future__ import annotations

import os

SPIN_COUNT = "1000"
"""Rounds that a thread of GNU's OpenMP spins at a barrier before it sleeps.

A step has hundreds of barriers. By default a thread spins for milliseconds; when another process takes one of the
CPUs, the thread that everybody waits for does not run while the others burn the time it would need. With 1,000 rounds
(about 40 us) a step takes no longer on a quiet machine, and a small part of the time on a busy one; figures are in
docs/performance.md.
"""


def sleep_at_barriers() -> None:
    """Let waiting threads sleep soon, unless the user has said how they shall wait.

    libgomp reads the variable when it is loaded, so that this comes before llama.cpp.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
