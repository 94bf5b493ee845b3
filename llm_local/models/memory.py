"""Whether a model fits in memory, by plain numbers known before it is loaded. The loader makes the exact plan."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

OVERHEAD_BYTES = 400 * 2**20
"""Compute buffers and the process itself, about: up to 300 MiB for 512 rows of a 7B model, and Python."""

KV_FACTOR = {"f16": 1.0, "q8_0": 34 / 64, "q4_0": 18 / 64}
"""Of an f16 cache: ggml's q8_0 has 34 bytes for 32 values, q4_0 has 18."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes, in bytes.

    Attributes:
        layers: 0 where that is not known.
        kv: of the whole context.
    """

    weights: int
    layers: int = 0
    kv: int = 0

    @property
    def total(self) -> int:
        """Of everything, on one device."""
        return self.weights + self.kv + OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model fits.

    Attributes:
        in_memory: in the free RAM; None where that is not known.
        gpu_layers: of `n_layers`, the output counts as one; None where there is no GPU or the layers are not known.
    """

    need: Need
    in_memory: bool | None
    gpu_layers: int | None
    n_layers: int


def fits(need: Need, free_ram: int | None, free_gpus: SequenceOf[int] = (), *, gpu_utilization: float = 0.9) -> Fit:
    """Return how a model fits in what is free.

    All layers are taken to share weights and cache evenly, and each GPU to have buffers of its own.

    Args:
        free_ram, free_gpus: bytes.
        gpu_utilization: share of a GPU's free memory that may be used.
    """
    n_layers = need.layers + 1 if need.layers else 0
    gpu_layers = None
    if free_gpus and n_layers:
        per_layer = max(need.weights + need.kv, 1) / n_layers
        room = [max(free * gpu_utilization - OVERHEAD_BYTES, 0.0) for free in free_gpus]
        gpu_layers = min(sum(int(bytes_free // per_layer) for bytes_free in room), n_layers)
    return Fit(need, None if free_ram is None else need.total <= free_ram, gpu_layers, n_layers)
