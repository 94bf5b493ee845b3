"""From the settings to a memory plan: what `serve` asks before it loads weights, and what `doctor` shows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from llm_local.config import Settings
from llm_local.errors import StartupError
from llm_local.llama import devices, host
from llm_local.llama.backend import MAX_SLOTS, PROMPT_OUTPUTS, ContextParams
from llm_local.llama.embedder import CHUNK_ROWS, ENCODER_ROWS, N_SLOTS
from llm_local.llama.header import read_shape
from llm_local.llama.need import ContextSize, ModelShape
from llm_local.llama.plan import Demand, Machine, ModelDemand, Plan, explain, make_plan

log = logging.getLogger("llm_local")

OWN_CONTEXT = ContextSize(n_ctx=64, n_ubatch=8, n_outputs=8)
"""Of `llama_cpp.Llama` itself, which comes with the weights."""


SPARE_SLOTS = 8
"""Slots beside the running ones: conversations that stay resident. They cost nothing but the cells they hold."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The files that are loaded."""

    model: Path
    embedding: Path | None = None
    draft: Path | None = None


@dataclass(frozen=True, slots=True)
class Layers:
    """Units on GPUs of each model, as llama.cpp counts them; and the plan that they come from."""

    model: int
    draft: int
    embedding: int
    plan: Plan
    machine: Machine


LEAST_HOST_CACHE_BYTES, SHARE_OF_MEMORY, SHARE_OF_FREE = 96 * 2**20, 32, 4
"""What the KV of idle sequences may take, unless it is set: so much in any case, and else at most one part in so many
of all memory and of what is left of it."""

LEAST_BATCH = 2
"""Rows: the size of a cell is measured with two."""


def context_params(settings: Settings, n_pinned: int) -> ContextParams:
    """Return the sizes of the context; each pinned prefix keeps a slot.

    Raises:
        StartupError: there are not slots enough.
    """
    n_slots = settings.parallel + SPARE_SLOTS + n_pinned
    if n_slots > MAX_SLOTS:
        raise StartupError(
            f"{n_pinned} warm prefixes are too many: beside {settings.parallel} running sequences there are slots "
            f"for {MAX_SLOTS - SPARE_SLOTS - settings.parallel}"
        )
    batch = min(settings.batch_size, settings.ctx)
    return ContextParams(
        n_ctx=settings.ctx,
        n_batch=max(batch, settings.parallel, LEAST_BATCH),
        n_ubatch=settings.ubatch_size,
        n_running=settings.parallel,
        n_slots=n_slots,
        n_threads=settings.threads or host.usable_cpus(),
        n_threads_batch=settings.threads_batch,
        kv_type=settings.kv_type,
        flash_attention=settings.flash_attention,
        backend_sampling=settings.backend_sampling,
    )


def read_machine() -> Machine:
    """Look at the devices and the memory. Asking a GPU for its memory starts its driver."""
    memory = host.memory()
    return Machine(tuple(devices.gpu_devices(memory.available if memory else None)), memory)


def choose_layers(weights: Weights, settings: Settings, params: ContextParams) -> Layers:
    """Plan where the weights go.

    Raises:
        StartupError: a header is damaged, a GPU is asked for that cannot be used, or there is no room; then with
            what fits.
    """
    machine = read_machine()
    demand = read_demand(weights, settings, params)
    plan = check(demand, machine)
    n_gpu = iter(placement.n_gpu for placement in plan.placements)
    return Layers(
        model=next(n_gpu),
        draft=next(n_gpu) if weights.draft else 0,
        embedding=next(n_gpu) if settings.embedding and weights.embedding else 0,
        plan=plan,
        machine=machine,
    )


def check(demand: Demand, machine: Machine) -> Plan:
    """Return the plan.

    Raises:
        StartupError: a GPU is asked for that cannot be used, or there is no room; then with what fits.
    """
    if demand.gpu_layers != "auto":
        devices.check_can_offload(demand.gpu_layers, list(machine.devices))
    plan = make_plan(demand, machine)
    if plan.shortage is not None:
        raise StartupError(explain(demand, machine, plan))
    return plan


def read_demand(weights: Weights, settings: Settings, params: ContextParams) -> Demand:
    """Read the headers and return what the settings ask for.

    Raises:
        StartupError: a file is missing, its header is damaged, or the model generates no text.
    """
    shape = read_shape(weights.model)
    if not shape.has_logits:
        raise StartupError(no_generator(shape.name, shape.architecture))
    generating = _generation(params)
    models = [ModelDemand(shape, (OWN_CONTEXT, generating))]
    if weights.draft is not None:
        models.append(ModelDemand(read_shape(weights.draft), (OWN_CONTEXT, generating)))
    if settings.embedding and weights.embedding is not None:
        own = read_shape(weights.embedding)
        models.append(ModelDemand(own, (OWN_CONTEXT, _embedding(own, settings))))
    elif settings.embedding:
        models[0] = ModelDemand(shape, (OWN_CONTEXT, generating, _embedding(shape, settings)))
    return Demand(
        models=tuple(models),
        gpu_layers=settings.gpu_layers,
        utilization=settings.gpu_memory_utilization,
        mmap=settings.mmap,
        mlock=settings.mlock,
        host_cache_bytes=_planned_host_cache_bytes(settings, shape),
    )


def host_cache_bytes(settings: Settings, cells_bytes: int, layers: Layers) -> int:
    """Return the most that the KV of idle sequences may take in the host's memory, once everything is loaded.

    Unless it is set, that is what all cells hold, within shares of the memory: on a CPU idle cells slow every step
    down. It is not more, so that all of it could come back together, into cells that nobody shares.
    """
    if settings.host_cache_mb is not None:
        return settings.host_cache_mb * 2**20
    memory = host.memory()
    if layers.model != 0 or memory is None:
        return LEAST_HOST_CACHE_BYTES
    # Weights that stay in their file count as available.
    free = memory.available - layers.plan.host.mapped
    most = max(min(cells_bytes, memory.total // SHARE_OF_MEMORY, free // SHARE_OF_FREE), LEAST_HOST_CACHE_BYTES)
    log.info("KV of idle sequences: up to %d MiB of memory (LLM_HOST_CACHE_MB)", most // 2**20)
    return most


def _planned_host_cache_bytes(settings: Settings, shape: ModelShape) -> int:
    """Return what a start must have for the KV of idle sequences; `host_cache_bytes` takes more of what is left."""
    if any(layer.state_bytes for layer in shape.layers):
        return 0
    return LEAST_HOST_CACHE_BYTES if settings.host_cache_mb is None else settings.host_cache_mb * 2**20


def no_generator(name: str, architecture: str) -> str:
    """Return what is said of a model that cannot be served."""
    return (
        f"{name} ({architecture}) is no decoder that generates text; name one in LLM_MODEL. "
        "If this one embeds, name it in LLM_EMBEDDING_MODEL"
    )


def _generation(params: ContextParams) -> ContextSize:
    """Return the sizes of the context that `LlamaBackend` creates."""
    return ContextSize(
        n_ctx=params.n_ctx,
        n_ubatch=min(params.n_ubatch, params.n_batch),
        n_outputs=max(params.n_running, params.n_slots) + PROMPT_OUTPUTS,
        n_sequences=params.n_slots,
        kv_type=params.kv_type,
        # `auto` is taken as on: CPU, CUDA, Metal and Vulkan have it for the usual head sizes.
        flash_attention=params.flash_attention != "off",
        follows_ctx=True,
    )


def _embedding(shape: ModelShape, settings: Settings) -> ContextSize:
    """Return the sizes of the context that `Embedder` creates."""
    window = min(settings.embedding_ctx, shape.n_ctx_train or settings.embedding_ctx)
    if shape.has_logits:
        return ContextSize(n_ctx=window, n_ubatch=CHUNK_ROWS, n_outputs=CHUNK_ROWS, n_sequences=N_SLOTS)
    rows = max(ENCODER_ROWS, window)
    return ContextSize(n_ctx=rows, n_ubatch=rows, n_outputs=rows, n_sequences=N_SLOTS)
