"""How fast one answer can be: weights are read once for each token, so memory bandwidth bounds it. Any thread."""

from __future__ import annotations

import threading
import time

import numpy as np

from llm_local.llama.place import Device, Placement

BLOCK_BYTES = 32 * 2**20
"""Larger than what a core has of the caches."""

MOST_THREADS = 16
"""More do not read faster, and each has two blocks."""

GPU_GB_S = {
    "RTX 3060": 360, "RTX 3070": 448, "RTX 3080": 760, "RTX 3090": 936,
    "RTX 4060": 272, "RTX 4060 Ti": 288, "RTX 4070": 504, "RTX 4080": 717, "RTX 4090": 1008, "RTX 5090": 1792,
    "T4": 320, "L4": 300, "L40S": 864, "A10": 600, "V100": 900, "A100": 1555, "H100": 3350, "H200": 4800,
}  # fmt: skip
"""Memory bandwidth of cards in 10^9 bytes a second, from NVIDIA's data sheets; of several variants the slowest."""


def threads_to_measure(n_threads: int, free_bytes: int | None) -> int:
    """Return how many of the threads may measure, whose blocks take a quarter of what is free at the most; maybe 0."""
    n_threads = min(max(n_threads, 1), MOST_THREADS)
    return n_threads if free_bytes is None else min(n_threads, free_bytes // (4 * 2 * BLOCK_BYTES))


def measure(n_threads: int, seconds: float = 0.3) -> float:
    """Return the bytes a second that `n_threads` threads move together: copies count for what they read and write."""
    n_threads = min(max(n_threads, 1), MOST_THREADS)
    moved = [0] * n_threads
    ready = threading.Barrier(n_threads + 1)
    end = [0.0]

    def copy(index: int) -> None:
        source = np.ones(BLOCK_BYTES, np.uint8)
        target = np.empty_like(source)
        target[:] = source
        ready.wait()
        while time.perf_counter() < end[0]:
            target[:] = source
            moved[index] += 2 * BLOCK_BYTES

    threads = [threading.Thread(target=copy, args=(index,), daemon=True) for index in range(n_threads)]
    for thread in threads:
        thread.start()
    end[0] = float("inf")
    ready.wait()
    began = time.perf_counter()
    end[0] = began + seconds
    for thread in threads:
        thread.join()
    return sum(moved) / (time.perf_counter() - began)


def gpu_bandwidth(description: str) -> float | None:
    """Return the bytes a second of a known card; None where it is not in the table."""
    words = description.replace("-", " ").split()
    known = [name for name in GPU_GB_S if _has(words, name.split())]
    return GPU_GB_S[max(known, key=len)] * 1e9 if known else None


def tokens_per_second(placement: Placement, devices: tuple[Device, ...], host_bandwidth: float) -> float | None:
    """Return the most tokens a second that one answer can have; None where a device's bandwidth is not known.

    An upper bound: arithmetic, the KV of a long context and what lies between the layers come on top.
    """
    seconds = placement.host.read / host_bandwidth
    for device, use in zip(devices, placement.devices, strict=True):
        bandwidth = host_bandwidth if device.shares_host else gpu_bandwidth(device.description)
        if use.read and bandwidth is None:
            return None
        seconds += use.read / (bandwidth or 1)
    return 1 / seconds if seconds else None


def _has(words: list[str], wanted: list[str]) -> bool:
    return any(words[start : start + len(wanted)] == wanted for start in range(len(words)))
