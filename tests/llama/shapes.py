"""Invented models, contexts and devices in round numbers."""

from __future__ import annotations

from typing import Any

from llm_local.llama.host import Memory
from llm_local.llama.need import MIB, ContextSize, Layer, ModelShape
from llm_local.llama.place import Device
from llm_local.llama.plan import Demand, Machine, ModelDemand

GIB = 2**30


def shape(n_layer: int = 10, layer_mib: int = 100, **changes: Any) -> ModelShape:
    """Layers of 100 MiB with 2 KiB of KV a token in f16, 50 MiB of input and of output; no experts."""
    fields: dict[str, Any] = {
        "name": "invented.gguf",
        "architecture": "llama",
        "layers": (Layer(layer_mib * MIB, k_values=512, v_values=512),) * n_layer,
        "input_bytes": 50 * MIB,
        "output_bytes": 50 * MIB,
        "output_repacked_bytes": 0,
        "tied_bytes": 0,
        "n_params": 1_800_000_000,
        "n_vocab": 1024,
        "n_embd": 1024,
        "n_ff": 4096,
        "n_head": 8,
        "q_width": 1024,
        "n_ctx_train": 32768,
        "largest_matrix_bytes": 20 * MIB,
    }
    return ModelShape(**{**fields, **changes})


def context(n_ctx: int = 1024, **changes: Any) -> ContextSize:
    """As the generation context: 2 MiB of KV a layer in f16 with 1024 cells."""
    fields = {"n_ctx": n_ctx, "n_ubatch": 128, "n_outputs": 16, "n_sequences": 4, "follows_ctx": True}
    return ContextSize(**{**fields, **changes})


def gpu(free_mib: int, name: str = "GPU0", **changes: Any) -> Device:
    return Device(name, "Invented Card", "CUDA", free_mib * MIB, free_mib * MIB, **changes)


def machine(*devices: Device, available_mib: int = 16384, swap_mib: int = 0) -> Machine:
    return Machine(devices, Memory(available_mib * MIB, swap_mib * MIB, 65536 * MIB))


def demand(model: ModelShape | None = None, *contexts: ContextSize, **changes: Any) -> Demand:
    return Demand((ModelDemand(model or shape(), contexts or (context(),)),), **changes)
