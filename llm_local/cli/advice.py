"""What `doctor` would change, each with the setting or the command that changes it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llm_local.cli.report import Report
from llm_local.config import Settings

if TYPE_CHECKING:
    from llm_local.llama.host import Cpus, Memory
    from llm_local.llama.plan import Demand, Machine, Plan

LOCAL = ("127.0.0.1", "::1", "localhost")
LITTLE_DISK_BYTES = 2 * 2**30
NVIDIA, RENDER = Path("/proc/driver/nvidia/version"), Path("/dev/dri")


class Advice:
    """Adds to a report's changes."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._report = report

    def about_cpus(self, cpus: Cpus) -> None:
        """Quotas, and more threads than find a CPU."""
        advise = self._report.advise
        if cpus.quota is not None and cpus.quota < cpus.affinity:
            advise(
                f"the container's CPU quota ({cpus.quota:.3g}) is below its {cpus.affinity} cores: raise it "
                "(docker run --cpus, resources.limits.cpu), or pin whole cores"
            )
            if cpus.quota != math.floor(cpus.quota):
                advise(f"a quota of {cpus.quota:.3g} CPUs feeds {cpus.usable} threads: whole numbers waste nothing")
        too_many = too_many_threads(self._settings, cpus.usable)
        if too_many is not None:
            advise(too_many)

    def about_build(self, backends: Collection[str], has: Collection[str], uses: Collection[str]) -> None:
        """Instruction sets that are missing or not used, and GPUs that the build cannot use."""
        advise = self._report.advise
        if "AVX" in has and "AVX2" not in has:
            advise("this CPU has no AVX2, without which answers are several times slower: take another machine")
        unused = [name for name in ("AVX2", "AVX512", "AVX512_VNNI") if name in has and name not in uses]
        if unused:
            advise(
                f"the CPU has {' and '.join(unused)}, and this build does not use it: compile llama-cpp-python on this "
                "machine (make install), or give the image this CPU's instruction set"
            )
        if set(backends) <= {"CPU", "BLAS", "RPC"}:
            if NVIDIA.exists() or shutil.which("nvidia-smi"):
                advise("there is an NVIDIA GPU, and this build computes on the CPU only: make install BACKEND=cuda")
            elif RENDER.is_dir() and any(RENDER.glob("renderD*")):
                advise("there is a GPU, and this build computes on the CPU only: make install BACKEND=vulkan")

    def about_plan(self, demand: Demand, machine: Machine, plan: Plan) -> None:
        """What is slow, what would bring all layers to the GPU, and a window that the model does not have."""
        from llm_local.llama.plan import alternatives

        advise, shape = self._report.advise, demand.models[0].shape
        for warning in plan.warnings:
            advise(warning)
        main = plan.placements[0]
        if demand.gpu_layers == "auto" and machine.devices and main.n_gpu < main.n_units:
            smaller = tuple(replace(d, free_bytes=int(d.free_bytes * demand.utilization)) for d in machine.devices)
            ways = alternatives(replace(demand, gpu_layers=-1), replace(machine, devices=smaller))
            ways = [way for way in ways if "LLM_GPU_LAYERS" not in way]
            if ways:
                advise(f"to have all {main.n_units} layers on the GPU: {'; or '.join(ways)}")
        if shape.n_ctx_train and self._settings.window > shape.n_ctx_train and self._settings.seq_max is not None:
            advise(f"LLM_SEQ_MAX={self._settings.seq_max} is more than the {shape.n_ctx_train} tokens of the model")
        if self._settings.mlock and not _may_lock(plan.host.mapped + plan.host.weights):
            advise("LLM_MLOCK: the limit of locked memory is below the weights (ulimit -l, or memlock in Docker)")

    def about_memory(self, memory: Memory | None) -> None:
        """A host without the usual head room."""
        if memory is not None and memory.swap and not self._settings.mlock:
            self._report.advise(
                "there is swap: if answers stall after quiet hours, KV was swapped out; vm.swappiness=1 or a container "
                "without swap keeps it in memory"
            )

    def about_missing(self, source: object, name: str) -> None:
        """A model that has to come first."""
        self._report.advise(f"fetch the model before the first start: llm-local pull {name} (from {source})")

    def about_server(self) -> None:
        """Who can reach it."""
        host, keys = self._settings.host, self._settings.api_keys or self._settings.api_keys_file
        if host not in LOCAL and not keys:
            self._report.advise(
                f"LLM_HOST={host} lets anyone in who reaches this machine: set LLM_API_KEYS or LLM_API_KEYS_FILE"
            )

    def about_disk(self, folder: Path, free_bytes: int) -> None:
        """Room for models."""
        if free_bytes < LITTLE_DISK_BYTES:
            self._report.advise(f"{folder} has {free_bytes / 2**30:.1f} GiB free, too little for a model")


def too_many_threads(settings: Settings, usable: int) -> str | None:
    """Return what is wrong with more threads than CPUs, None where they are not more."""
    for setting, wanted in (("LLM_THREADS", settings.threads), ("LLM_THREADS_BATCH", settings.threads_batch)):
        if wanted is not None and wanted > usable:
            return (
                f"{setting}={wanted} is more than the {usable} CPUs that this process may use, and threads that wait "
                "for each other slow it several times: unset it"
            )
    return None


def _may_lock(n_bytes: int) -> bool:
    try:
        import resource
    except ImportError:
        return True
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return limit == resource.RLIM_INFINITY or limit >= n_bytes
