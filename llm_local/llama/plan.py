"""Does it fit? All models of a server on the devices and in the host's memory: a pure function of plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Literal

from llm_local.llama.host import Memory
from llm_local.llama.need import KV_BYTES, MIB, ContextSize, ModelShape
from llm_local.llama.place import Device, Placement, Use, after, fitting, place, within

PROCESS_BYTES = 128 * MIB
PROCESS_BYTES_PER_TOKEN = 1024
"""What the process grows by beside llama.cpp: grammar tables and the texts of the vocabulary are the largest part."""

QUANTIZATIONS = (("Q8_0", 8.5), ("Q6_K", 6.6), ("Q5_K_M", 5.7), ("Q4_K_M", 4.9), ("Q3_K_M", 3.9), ("Q2_K", 3.2))
"""Usual ones and the bits of a weight that they come to, embeddings and head included."""


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """One model and the contexts over it; the first of a `Demand` is the one that generates."""

    shape: ModelShape
    contexts: tuple[ContextSize, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """What the settings ask for."""

    models: tuple[ModelDemand, ...]
    gpu_layers: Literal["auto"] | int = "auto"
    utilization: float = 0.9
    mmap: bool = True
    mlock: bool = False
    host_cache_bytes: int = 0

    @property
    def stays_in_file(self) -> bool:
        """Whether the system may drop weights from memory, because the file has them."""
        return self.mmap and not self.mlock


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is; `memory` is None where the system does not tell."""

    devices: tuple[Device, ...] = ()
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes.

    Attributes:
        placements: of the models, in the order of the demand.
        devices: bytes on each device, all models together.
        host: bytes in the host's memory, all models together.
        other_bytes: the process itself and its cache of idle KV.
        shortage: what does not fit, in one sentence; None where everything does.
        warnings: what will be slow.
    """

    placements: tuple[Placement, ...]
    devices: tuple[Use, ...]
    host: Use
    other_bytes: int
    shortage: str | None
    warnings: tuple[str, ...]

    @property
    def n_gpu(self) -> int:
        """Units of the generating model on GPUs."""
        return self.placements[0].n_gpu


def make_plan(demand: Demand, machine: Machine) -> Plan:
    """Place all models, the generating one first; `auto` puts the others on GPUs whole where room is left, or not.

    `auto` plans with `utilization` of the free memory of each device. An explicit number may use all of it. A model
    whose layers stay on the CPU has buffers on the devices all the same, for which the models before it leave room.
    """
    devices = list(machine.devices)
    budgets = [int(device.free_bytes * demand.utilization) for device in devices]
    placements: list[Placement] = []
    totals = [Use() for _ in devices]
    for index, model in enumerate(demand.models):
        later = _least(demand.models[index + 1 :], machine, demand)
        room = [budget - use.taken - least for budget, use, least in zip(budgets, totals, later, strict=True)]
        placement = _place(model, demand, devices, room, whole=index > 0)
        placements.append(placement)
        totals = [total + use for total, use in zip(totals, placement.devices, strict=True)]
        devices = after(devices, placement)
    host = sum((placement.host for placement in placements), Use())
    shape = demand.models[0].shape
    other = demand.host_cache_bytes + PROCESS_BYTES + PROCESS_BYTES_PER_TOKEN * shape.n_vocab
    shortage = None
    if demand.gpu_layers not in ("auto", 0):
        shortage = _device_shortage(machine, totals)
    shared = sum(use.taken for use, device in zip(totals, machine.devices, strict=True) if device.shares_host)
    warnings: list[str] = []
    if machine.memory is not None:
        shortage = shortage or _host_shortage(host, other, shared, machine.memory)
        warnings += [] if shortage else _host_warnings(host, other, shared, machine.memory)
    if demand.gpu_layers == "auto" and machine.devices and not placements[0].n_gpu:
        warnings.append(f"no layer fits into the free memory of {_names(machine)}: all is computed on the CPU")
    return Plan(tuple(placements), tuple(totals), host, other, shortage, tuple(warnings))


def _least(models: SequenceOf[ModelDemand], machine: Machine, demand: Demand) -> list[int]:
    """Return the bytes of each device that models take whose layers are all on the CPU."""
    on_cpu = [place(m.shape, m.contexts, machine.devices, 0, mapped=demand.stays_in_file) for m in models]
    return [sum(placement.devices[index].taken for placement in on_cpu) for index in range(len(machine.devices))]


def _place(model: ModelDemand, demand: Demand, devices: list[Device], room: list[int], *, whole: bool) -> Placement:
    """Place one model; `whole` allows `auto` all or nothing."""
    mapped = demand.stays_in_file
    if demand.gpu_layers != "auto":
        return place(model.shape, model.contexts, devices, demand.gpu_layers, mapped=mapped)
    if not whole:
        return fitting(model.shape, model.contexts, devices, room, mapped=mapped)
    placement = place(model.shape, model.contexts, devices, -1, mapped=mapped)
    if within(placement, room):
        return placement
    return place(model.shape, model.contexts, devices, 0, mapped=mapped)


def _device_shortage(machine: Machine, totals: list[Use]) -> str | None:
    for device, use in zip(machine.devices, totals, strict=True):
        if use.taken > device.free_bytes:
            return f"{device.name} would need {_parts(use)}, and {size(device.free_bytes)} are free"
    return None


def _host_shortage(host: Use, other: int, shared: int, memory: Memory) -> str | None:
    need = host.taken + other + shared
    if need <= memory.available + memory.swap:
        return None
    swap = f" and {size(memory.swap)} of swap" if memory.swap else ""
    on_gpu = f", {size(shared)} for the GPU" if shared else ""
    parts = _parts(replace(host, mapped=0))
    return (
        f"this needs {parts}, {size(other)} for the process and its cache{on_gpu}: {size(need)} of memory, "
        f"and {size(memory.available)}{swap} are free"
    )


def _host_warnings(host: Use, other: int, shared: int, memory: Memory) -> Iterator[str]:
    need = host.taken + other + shared
    if need > memory.available:
        yield (
            f"{size(need)} of memory are needed and {size(memory.available)} are free: "
            "the rest goes to swap, which is very slow"
        )
    elif need + host.mapped > memory.available:
        yield (
            f"the weights in the file have {size(host.mapped)}, and {size(memory.available - need)} of memory are left "
            "for them: each token reads what is missing from the disk again, which is very slow"
        )


def alternatives(demand: Demand, machine: Machine) -> list[str]:
    """Return what could be changed, one thing at a time, so that everything fits."""
    found = []
    if demand.gpu_layers not in ("auto", 0) and machine.devices:
        found += _fewer_layers(demand, machine)
    if n_ctx := _largest_ctx(demand, machine):
        found.append(f"set LLM_CTX to at most {n_ctx}")
    found += _smaller_cells(demand, machine)
    for name, other in (
        ("LLM_MLOCK=false", replace(demand, mlock=False)),
        ("LLM_MMAP=true", replace(demand, mmap=True)),
        ("LLM_HOST_CACHE_MB=0", replace(demand, host_cache_bytes=0)),
    ):
        if other != demand and _fits(other, machine):
            found.append(name)
    bits = demand.models[0].shape.bits_per_weight
    for name, fewer in QUANTIZATIONS:
        if fewer < bits * 0.95 and _fits(_with_weights(demand, fewer / bits), machine):
            found.append(f"a smaller quantization such as {name} ({fewer} bits a weight; this file has {bits:.1f})")
            break
    return found


def explain(demand: Demand, machine: Machine, plan: Plan) -> str:
    """Return why a plan with a shortage cannot be, and what could, in one line."""
    ways = alternatives(demand, machine)
    advice = f"What fits: {'; or '.join(ways)}"
    if not ways:
        advice = "No single setting is enough: take a smaller model, and a smaller LLM_CTX"
    return f"{demand.models[0].shape.name} does not fit: {plan.shortage}. {advice}"


def summary(machine: Machine, plan: Plan) -> str:
    """Return the plan in one line."""
    main = plan.placements[0]
    parts = [f"{main.n_gpu} of {main.n_units} layers on {_names(machine)}"] if main.n_gpu else ["all layers on the CPU"]
    for device, use in zip(machine.devices, plan.devices, strict=True):
        if use.taken and main.n_gpu:
            parts.append(f"{device.name}: {_parts(use)} of {size(device.free_bytes)} free")
    parts.append(
        f"memory: {_parts(plan.host)}" + (f" of {size(machine.memory.available)} free" if machine.memory else "")
    )
    return "; ".join(parts)


def size(n_bytes: int) -> str:
    """Return bytes as people read them."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / MIB:.0f} MiB"


def _fewer_layers(demand: Demand, machine: Machine) -> list[str]:
    """Return the most layers that fit; each model puts so many on the GPU, where `auto` may leave a smaller one out."""
    n_units = len(demand.models[0].shape.layers) + 1
    most = next((n for n in range(n_units, 0, -1) if _fits(replace(demand, gpu_layers=n), machine)), 0)
    ways = [f"to at most {most} (of {n_units})"] if most else []
    if _fits(replace(demand, gpu_layers="auto"), machine):
        ways.append("to auto")
    return [f"set LLM_GPU_LAYERS {', or '.join(ways)}"] if ways else []


def _smaller_cells(demand: Demand, machine: Machine) -> list[str]:
    """Return the first of what makes cells or scores smaller; quantized cells need flash attention."""
    context = next(c for c in demand.models[0].contexts if c.follows_ctx)
    if not context.flash_attention:
        changes: list[tuple[str, dict[str, object]]] = [("LLM_FLASH_ATTENTION=auto", {"flash_attention": True})]
    else:
        smaller = [t for t in KV_BYTES if KV_BYTES[t] < KV_BYTES[context.kv_type]]
        changes = [(f"LLM_KV_TYPE={t}", {"kv_type": t}) for t in smaller]
    return [name for name, change in changes if _fits(_with_contexts(demand, **change), machine)][:1]


def _with_contexts(demand: Demand, **changes: object) -> Demand:
    models = tuple(
        replace(model, contexts=tuple(replace(c, **changes) if c.follows_ctx else c for c in model.contexts))  # type: ignore[arg-type]
        for model in demand.models
    )
    return replace(demand, models=models)


def _with_weights(demand: Demand, factor: float) -> Demand:
    """Return the demand with the generating model's weights made smaller."""
    shape = demand.models[0].shape
    layers = tuple(
        replace(layer, n_bytes=int(layer.n_bytes * factor), repacked_bytes=int(layer.repacked_bytes * factor))
        for layer in shape.layers
    )
    smaller = {
        name: int(getattr(shape, name) * factor)
        for name in ("input_bytes", "output_bytes", "output_repacked_bytes", "tied_bytes", "largest_matrix_bytes")
    }
    main = replace(demand.models[0], shape=replace(shape, layers=layers, **smaller))  # type: ignore[arg-type]
    return replace(demand, models=(main, *demand.models[1:]))


def _fits(demand: Demand, machine: Machine) -> bool:
    return make_plan(demand, machine).shortage is None


def _largest_ctx(demand: Demand, machine: Machine, step: int = 256) -> int:
    """Return the most cells that fit, a multiple of `step`; 0 where that is fewer than one step, or not the trouble."""
    low, high = 0, max(c.n_ctx for model in demand.models for c in model.contexts if c.follows_ctx) // step
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _fits(_with_contexts(demand, n_ctx=middle * step), machine) else (low, middle - 1)
    return low * step


def _parts(use: Use) -> str:
    weights = f"weights {size(use.weights)}" if use.weights else ""
    mapped = f"weights {size(use.mapped)} in the file" if use.mapped else ""
    return ", ".join(
        part
        for part in (weights, mapped, f"KV {size(use.kv)}" if use.kv else "", f"compute {size(use.compute)}")
        if part
    )


def _names(machine: Machine) -> str:
    return " and ".join(device.name for device in machine.devices)
