"""Where llama.cpp puts a model's layers, and how many bytes that takes on each device: a pure function of numbers.

llama.cpp's rule: of the units (the layers, and the output as the last) the last N go to the GPUs. With several GPUs
each gets a run of them in proportion to its free memory. A layer's KV is where the layer is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from itertools import accumulate

from llm_local.llama.need import ContextSize, Layer, ModelShape, compute_bytes, layer_kv_bytes, logits_bytes, mask_bytes

PIPELINE_COPIES = 4
"""GGML_SCHED_MAX_COPIES: inputs of a graph are kept so many times where several devices work on it in turn."""

OFFLOADED_ROWS = 32
"""A pass of so many rows brings weights from the host's memory to a GPU, one matrix at a time."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU; `shares_host` says that its memory is the host's."""

    name: str
    description: str
    backend: str
    free_bytes: int
    total_bytes: int
    shares_host: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes of one device, or of the host.

    Attributes:
        mapped: the part of the weights that stays in the file (host only).
        read: weights that computing one token reads here.
    """

    weights: int = 0
    kv: int = 0
    compute: int = 0
    mapped: int = 0
    read: int = 0

    @property
    def taken(self) -> int:
        """Bytes that cannot be given up."""
        return self.weights + self.kv + self.compute

    def __add__(self, other: Use) -> Use:
        return Use(
            self.weights + other.weights,
            self.kv + other.kv,
            self.compute + other.compute,
            self.mapped + other.mapped,
            self.read + other.read,
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """A model on devices.

    Attributes:
        n_gpu: units on GPUs; 0 to layers + 1 (the output).
        n_units: layers + 1.
        devices: bytes on each device, in their order.
        host: bytes in the host's memory.
    """

    n_gpu: int
    n_units: int
    devices: tuple[Use, ...]
    host: Use


def place(
    shape: ModelShape,
    contexts: SequenceOf[ContextSize],
    devices: SequenceOf[Device],
    n_gpu: int,
    *,
    mapped: bool = True,
) -> Placement:
    """Return what `n_gpu` units on the devices take.

    Args:
        n_gpu: as llama.cpp counts them; -1 or more than there are is all.
        mapped: whether weights of the host stay in their file (mmap, and not locked).
    """
    n_units = len(shape.layers) + 1
    n_gpu = n_units if n_gpu < 0 else min(n_gpu, n_units)
    n_gpu = n_gpu if devices else 0
    first = n_units - n_gpu
    homes = [None] * first + _split(n_gpu, devices)
    uses = [Use() for _ in devices]
    host = _host_weights(shape, first, bool(devices), mapped)
    for unit, home in enumerate(homes):
        layer = shape.layers[unit] if unit < len(shape.layers) else Layer(shape.output_bytes)
        kv = sum(layer_kv_bytes(layer, context) for context in contexts)
        read = shape.read_bytes(layer)
        if home is None:
            host += Use(kv=kv, read=read)
        else:
            uses[home] += Use(weights=layer.n_bytes, kv=kv, read=read)
    for index in range(len(devices)):
        units = [unit for unit, home in enumerate(homes) if home == index]
        uses[index] += Use(compute=sum(_device_compute(shape, context, units, n_gpu, devices) for context in contexts))
    host += Use(compute=sum(_host_compute(shape, context, first) for context in contexts))
    return Placement(n_gpu, n_units, tuple(uses), host)


def fitting(
    shape: ModelShape,
    contexts: SequenceOf[ContextSize],
    devices: SequenceOf[Device],
    budgets: SequenceOf[int],
    *,
    mapped: bool = True,
) -> Placement:
    """Return the placement with the most units on GPUs that keeps each device within its budget (bytes)."""
    for n_gpu in range(len(shape.layers) + 1, 0, -1):
        placement = place(shape, contexts, devices, n_gpu, mapped=mapped)
        if placement.n_gpu and within(placement, budgets):
            return placement
    return place(shape, contexts, devices, 0, mapped=mapped)


def within(placement: Placement, budgets: SequenceOf[int]) -> bool:
    """Tell whether no device takes more than its budget."""
    return all(use.taken <= budget for use, budget in zip(placement.devices, budgets, strict=True))


def after(devices: SequenceOf[Device], placement: Placement) -> list[Device]:
    """Return the devices with what is free once the model is on them."""
    uses = zip(devices, placement.devices, strict=True)
    return [replace(device, free_bytes=max(device.free_bytes - use.taken, 0)) for device, use in uses]


def _split(n_gpu: int, devices: SequenceOf[Device]) -> list[int | None]:
    """Return the device of each unit on a GPU (llama-model.cpp, get_layer_buft_list)."""
    ends = list(accumulate(device.free_bytes for device in devices))
    if not ends or ends[-1] == 0:
        return [0] * n_gpu
    shares = [end / ends[-1] for end in ends]
    return [min(bisect_right(shares, unit / n_gpu), len(devices) - 1) for unit in range(n_gpu)]


def _host_weights(shape: ModelShape, first: int, has_gpu: bool, mapped: bool) -> Use:
    """Return the weights that the CPU computes with, and the token embeddings, which always stay.

    The CPU backend copies some of them into an order of its own, unless there is a GPU.
    """
    own = shape.input_bytes + sum(layer.n_bytes for layer in shape.layers[:first])
    copied = sum(layer.repacked_bytes for layer in shape.layers[:first])
    # Where the head is the token embeddings, a copy of it stands beside them, not in their place.
    beside = 0
    if first > len(shape.layers):
        own += shape.output_bytes - shape.tied_bytes
        beside, copied = (
            (shape.output_repacked_bytes, copied) if shape.tied_bytes else (0, copied + shape.output_repacked_bytes)
        )
    if has_gpu:
        copied = beside = 0
    rest = own - copied
    return Use(weights=copied + beside, mapped=rest) if mapped else Use(weights=copied + beside + rest)


def _device_compute(
    shape: ModelShape, context: ContextSize, units: list[int], n_gpu: int, devices: SequenceOf[Device]
) -> int:
    n_layer = len(shape.layers)
    layers = any(unit < n_layer for unit in units)
    total = compute_bytes(shape, context, layers=layers, output=n_layer in units)
    if n_gpu <= n_layer and context.n_ubatch >= OFFLOADED_ROWS:
        return total + max(shape.largest_matrix_bytes, 0 if n_gpu else shape.output_bytes)
    if len(devices) > 1:
        total += (PIPELINE_COPIES - 1) * mask_bytes(context)
    return total


def _host_compute(shape: ModelShape, context: ContextSize, first: int) -> int:
    """Return the buffers of what the CPU computes, the inputs of the graph at least, and the logits handed out."""
    n_layer = len(shape.layers)
    inputs = mask_bytes(context) + min(context.n_ubatch, context.n_ctx) * shape.n_embd * 4
    own = compute_bytes(shape, context, layers=True, output=first > n_layer) if first else 0
    return max(own, inputs) + logits_bytes(shape, context)
