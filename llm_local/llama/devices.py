"""What the machine has for this process: CPUs it may use, memory that is free, whether layers can go to a GPU."""

from __future__ import annotations

import math
import os
from pathlib import Path

import llama_cpp

from llm_local.errors import StartupError
from llm_local.llama.model import LlamaModel

CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """Return how many CPUs this process may use: its affinity, cut by the cgroup's quota. At least 1.

    ggml's threads spin at barriers, so that one thread more than there are CPUs slows decoding several times.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus()
    return max(1, affinity if quota is None else min(affinity, math.floor(quota)))


def available_bytes() -> int | None:
    """Return the memory that can still be taken, within the cgroup's limit; None where that is not known."""
    candidates = [value for value in (_meminfo_available(), _cgroup_available()) if value is not None]
    return min(candidates, default=None)


def gpu_layers(choice: str | int) -> int:
    """Return the number of layers for llama.cpp: `auto` is all of them where this build can use a GPU, else none."""
    if choice == "auto":
        return -1 if llama_cpp.llama_supports_gpu_offload() else 0
    return int(choice)


KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of one value: ggml's q8_0 has 34 bytes for 32 values, q4_0 has 18."""


def kv_bytes_per_token(model: LlamaModel, kv_type: str = "f16") -> int:
    """Return the bytes of one KV cell: 2 (K and V) x layers x KV heads x head size x bytes of a value."""
    layers = llama_cpp.llama_model_n_layer(model.model)
    heads = max(llama_cpp.llama_model_n_head(model.model), 1)
    kv_heads = llama_cpp.llama_model_n_head_kv(model.model)
    head_size = int(model.metadata.get(f"{model.architecture}.attention.key_length", model.n_embd // heads))
    return int(2 * layers * kv_heads * head_size * KV_BYTES[kv_type])


def check_kv_fits(model: LlamaModel, n_ctx: int, kv_type: str, on_gpu: bool) -> None:
    """Refuse a KV cache larger than the free memory, which the system would grant and then kill the process for.

    Raises:
        StartupError: with the numbers, and the largest `ctx` that fits.
    """
    free, per_token = available_bytes(), kv_bytes_per_token(model, kv_type)
    if on_gpu or free is None or n_ctx * per_token <= free:
        return
    raise StartupError(
        f"a KV cache of {n_ctx} tokens needs {n_ctx * per_token / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; "
        f"set LLM_CTX to at most {free // per_token}, or LLM_KV_TYPE to q8_0 or q4_0"
    )


def locked_bytes() -> int | None:
    """Return how much of this process' memory cannot be swapped out; None where that is not known."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmLck:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _meminfo_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _cgroup_available() -> int | None:
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit) - int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None


def _cgroup_cpus() -> float | None:
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
