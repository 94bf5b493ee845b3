"""Print CMake's flags for llama.cpp: `compile_flags.py BACKEND [CPU]`. The Makefile and both Dockerfiles ask here.

They are quoted as scikit-build-core reads CMAKE_ARGS, which is as a shell would.

CPU says for which processors: `native` is this machine's (fastest, and may stop with "illegal instruction" on another),
`portable` is any of the last ten years. It needs nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

BACKENDS = {
    "cpu": (),
    "cuda": ("-DGGML_CUDA=ON",),
    "vulkan": ("-DGGML_VULKAN=ON",),
    "opencl": ("-DGGML_OPENCL=ON",),
    "metal": ("-DGGML_METAL=ON",),
    "openblas": ("-DGGML_BLAS=ON", "-DGGML_BLAS_VENDOR=OpenBLAS"),
}

# The x86-64 levels of the System V ABI, as far as ggml has a switch for them. Each has what the one before it has.
X86_SWITCHES = ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C", "AVX512")
X86_LEVELS = {"x86-64-v2": 1, "x86-64-v3": 6, "x86-64-v4": 7}
PORTABLE_X86 = "x86-64-v3"

CPUINFO = Path("/proc/cpuinfo")
INSTRUCTIONS = ("sse", "ssse", "avx", "amx", "bmi", "fma", "f16c", "asimd", "sve", "i8mm", "bf16", "fphp")
WITHOUT_AMX, WITHOUT_AVX512_FP16 = "-U__AMX_INT8__", "-mno-avx512fp16"
CHOSEN_COMPILER = "-DCMAKE_CXX_COMPILER="
RELEASE = "-DCMAKE_CXX_FLAGS_RELEASE=-O3 -DNDEBUG"
"""CMake's own for releases. Ours come after them, so that the user's CXXFLAGS and CMAKE_CXX_FLAGS are kept."""

# Configures AMX's tiles as llama.cpp does, and looks whether that is what they are.
AMX_PROBE = """
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

struct Tiles { unsigned char palette, start, reserved[14]; unsigned short columns[16]; unsigned char rows[16]; };

int main() {
    syscall(SYS_arch_prctl, 0x1023, 18);  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    alignas(64) Tiles wanted = {};
    wanted.palette = 1;
    for (int tile = 0; tile < 8; tile++) { wanted.rows[tile] = 16; wanted.columns[tile] = 64; }
    _tile_loadconfig(&wanted);
    alignas(64) unsigned char found[64] = {};
    __asm__ volatile("sttilecfg %0" : "=m"(found));
    return found[0] == 1 && found[48] == 16 && found[55] == 16 ? 0 : 1;
}
"""


def flags(backend: str, cpu: str, machine: str, cmake_args: str | None = None) -> list[str]:
    """Return the flags.

    Args:
        backend: one of BACKENDS.
        cpu: native, portable, one of X86_LEVELS, or an ARM architecture such as armv8.2-a+dotprod.
        machine: `platform.machine()` of where the result runs.
        cmake_args: what CMake gets besides; None: CMAKE_ARGS of the environment.

    Raises:
        ValueError: an unknown name, or instructions of another kind of machine.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown BACKEND {backend!r}; there are {', '.join(BACKENDS)}")
    return [*BACKENDS[backend], *_cpu_flags(cpu, machine, cmake_args)]


def _cpu_flags(cpu: str, machine: str, cmake_args: str | None) -> list[str]:
    on_x86 = machine.lower() in ("x86_64", "amd64")
    if cpu == "native":
        without = left_out(cmake_args)
        return ["-DGGML_NATIVE=ON", *([" ".join([RELEASE, *without])] if without else [])]
    if cpu == "portable":
        # On ARM ggml then takes armv8-a, which every 64-bit ARM has.
        return _x86_flags(PORTABLE_X86) if on_x86 else ["-DGGML_NATIVE=OFF"]
    if cpu in X86_LEVELS and on_x86:
        return _x86_flags(cpu)
    if cpu.startswith("armv") and not on_x86:
        return ["-DGGML_NATIVE=OFF", f"-DGGML_CPU_ARM_ARCH={cpu}"]
    known = f"native, portable, {', '.join(X86_LEVELS)}" if on_x86 else "native, portable, armv8.2-a+dotprod and so on"
    raise ValueError(f"unknown CPU_ARCH {cpu!r} for {machine}; there are {known}")


def cpu_flags() -> str:
    """Return what the CPU has, as the kernel says it; empty where that is not known."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def instructions() -> str:
    """Return those of `cpu_flags` that a compiler makes use of: the others change with the kernel."""
    return " ".join(sorted(flag for flag in cpu_flags().split() if flag.startswith(INSTRUCTIONS)))


def left_out(cmake_args: str | None = None) -> list[str] | None:
    """Return the compiler's options that leave out what this CPU has, but llama.cpp is better off without.

    None if that cannot be known, because no compiler can be run.

    Args:
        cmake_args: what CMake gets, perhaps a compiler; None: CMAKE_ARGS of the environment.
    """
    compiler = _compiler(os.environ.get("CMAKE_ARGS", "") if cmake_args is None else cmake_args)
    try:
        found = {WITHOUT_AMX: amx_fails(compiler), WITHOUT_AVX512_FP16: avx512_fp16_is_used(compiler)}
    except OSError:
        return None
    return [option for option, is_needed in found.items() if is_needed]


def avx512_fp16_is_used(compiler: list[str]) -> bool:
    """Tell whether what is compiled here for this CPU would use AVX512-FP16 (Intel's since 2023).

    llama.cpp then adds values up in steps of 128, and computes heads of 64 (Qwen2.5-0.5B, Llama-3.2-1B) value by value:
    four answers at 512 tokens take 1.5 times as long, at 2,048 tokens 2.4 times. Heads of 128 lose nothing without.

    Raises:
        OSError: there is no compiler.
    """
    if "avx512_fp16" not in cpu_flags():
        return False
    show_macros = [*compiler, "-march=native", "-dM", "-E", "-x", "c++", "-"]
    shown = subprocess.run(show_macros, input="", capture_output=True, text=True, check=False)
    return "__AVX512FP16__" in shown.stdout


def amx_fails(compiler: list[str]) -> bool:
    """Tell whether this CPU has AMX (Intel's since 2023), but what is compiled here for it cannot use it.

    GCC 12 hands over 8 of the 64 bytes that configure the tiles, and llama.cpp then ends with "illegal instruction"
    (its pull request 26954). Without AMX, AVX-512 computes the same, about as fast.

    Raises:
        OSError: there is no compiler.
    """
    if "amx_int8" not in cpu_flags():
        return False
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "probe.cpp", Path(folder) / "probe"
        source.write_text(AMX_PROBE)
        compile_it = [*compiler, "-O3", "-march=native", str(source), "-o", str(program)]
        if subprocess.run(compile_it, capture_output=True, check=False).returncode:
            return True
        return subprocess.run([str(program)], capture_output=True, check=False).returncode != 0


def _compiler(cmake_args: str) -> list[str]:
    """Return the C++ compiler that CMake will take."""
    chosen = [one for one in shlex.split(cmake_args) if one.startswith(CHOSEN_COMPILER)]
    if chosen:
        return [chosen[-1].removeprefix(CHOSEN_COMPILER)]
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def _x86_flags(level: str) -> list[str]:
    has = X86_LEVELS[level]
    switches = [f"-DGGML_{name}={'ON' if place < has else 'OFF'}" for place, name in enumerate(X86_SWITCHES)]
    return ["-DGGML_NATIVE=OFF", *switches]


def main() -> int:
    """Return 0, or 2 for a name that is not known."""
    parser = argparse.ArgumentParser(description="Print CMake's flags for llama.cpp.")
    parser.add_argument("backend", metavar="BACKEND", help=", ".join(BACKENDS))
    parser.add_argument("cpu", metavar="CPU", nargs="?", default="native", help="native, portable, x86-64-v3 ...")
    options = parser.parse_args()
    try:
        print(shlex.join(flags(options.backend, options.cpu, platform.machine())))
    except ValueError as error:
        print(f"compile_flags: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
