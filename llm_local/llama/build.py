"""What this build of llama.cpp is, and what the CPU has that it could use. Any thread."""

from __future__ import annotations

import platform
from pathlib import Path

import llama_cpp

from llm_local.llama import ggml
from llm_local.llama.host import PROC

INSTRUCTION_SETS = {
    "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16", "avx_vnni": "AVX_VNNI", "amx_int8": "AMX_INT8",
    "asimd": "NEON", "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE",
}  # fmt: skip
"""Those that matter to ggml: the kernel's name, and ggml's in its system info."""


def version() -> str:
    """Return the version of llama-cpp-python."""
    return str(llama_cpp.__version__)


def backends() -> list[str]:
    """Return the names of the backends that are compiled in."""
    return ggml.backends()


def system_info() -> str:
    """Return llama.cpp's own description of the build."""
    return str(llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip(" |"))


def built_with() -> set[str]:
    """Return the instruction sets that this build uses, by ggml's names."""
    pairs = (part.rpartition("=") for part in system_info().replace(":", "|").split("|"))
    return {name.strip() for name, _, value in pairs if value.strip() == "1"}


def cpu_model(proc: Path = PROC) -> str:
    """Return the CPU's name."""
    for line in _cpuinfo(proc):
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def instruction_sets(proc: Path = PROC) -> list[str]:
    """Return the instruction sets of the CPU that matter, by ggml's names; empty where that is not known."""
    for line in _cpuinfo(proc):
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
            return [shown for flag, shown in INSTRUCTION_SETS.items() if flag in flags]
    return []


def _cpuinfo(proc: Path) -> list[str]:
    try:
        return (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        return []
