"""Compile llama.cpp into this environment for BACKEND, if that is not what it has. `make install` runs it.

In the environment: BACKEND is one of compile_flags.BACKENDS, CMAKE_ARGS has any more flags. What is not given stays as
it was, so that a newer llama.cpp is compiled for the same backend. Where nothing was ever asked for, this does nothing,
and pip compiles for the CPU, or takes the wheel that it kept, unless that would not run here or be slow (`left_out`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from compile_flags import BACKENDS, flags, instructions, left_out

ROOT = Path(__file__).parent.parent
RECORD = Path(sys.prefix) / ".built-for"
DEFAULT_BACKEND = "cpu"
NEEDS = {
    "cpu": "a C++ compiler and CMake",
    "cuda": "NVIDIA's CUDA toolkit with nvcc",
    "vulkan": "on Debian and Ubuntu: apt install libvulkan-dev glslc spirv-headers",
    "opencl": "on Debian and Ubuntu: apt install opencl-headers ocl-icd-opencl-dev",
    "metal": "Xcode's command line tools",
    "openblas": "on Debian and Ubuntu: apt install libopenblas-dev pkg-config",
}


@dataclass(frozen=True, slots=True)
class Build:
    """What llama.cpp is compiled from and for; RECORD has it as text.

    Attributes:
        requirement: llama-cpp-python with its version.
        backend: one of BACKENDS.
        cmake_args: what the user adds.
        without: options of the compiler that leave out what this CPU has, `left_out` at that time.
        cpu: of what the CPU has, a few digits; empty where that is not known.
    """

    requirement: str
    backend: str
    cmake_args: str = ""
    without: str = ""
    cpu: str = ""

    @classmethod
    def read(cls, text: str) -> Build | None:
        """Return what a record says, or None if it is not one of ours."""
        line, without, cpu, *_ = [*(part.strip() for part in text.split("\n")), "", ""]
        parts = line.split(" ", 2)
        return cls(*parts, without=without, cpu=cpu) if len(parts) >= 2 and parts[1] in BACKENDS else None

    def __str__(self) -> str:
        return f"{self.requirement} {self.backend} {self.cmake_args}".strip() + f"\n{self.without}\n{self.cpu}".rstrip()


def wanted(
    requirement: str,
    installed: Build | None,
    backend: str,
    cmake_args: str,
    *,
    cpu: str,
    leave_out: Callable[[str], list[str] | None],
) -> Build | None:
    """Return what must be compiled, or None if that is there, or nothing was ever asked for or is to be left out.

    Args:
        requirement: llama-cpp-python with its version.
        installed: what was compiled here before, if anything was.
        backend, cmake_args: what is asked for; empty: as installed.
        cpu: of what the CPU has, a few digits: what was compiled on another one may not run here.
        leave_out: returns what the compiler is to leave out, given CMake's arguments; None: nobody can say.
    """
    before = installed or Build("", DEFAULT_BACKEND)
    kept = before.cmake_args if backend in ("", before.backend) else ""
    build = Build(requirement, backend or before.backend, cmake_args or kept, before.without, cpu)
    if (without := leave_out(build.cmake_args)) is not None:
        build = replace(build, without=" ".join(without))
    if installed is None and not (backend or cmake_args or build.without):
        return None
    # Where one of both CPUs is not known (records of earlier versions), they are taken for the same.
    if installed is not None and not (installed.cpu and cpu):
        installed = replace(installed, cpu=cpu)
    return None if build == installed else build


def main() -> int:
    """Return 0, 2 for an unknown backend, or pip's exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirement = next(one for one in project["dependencies"] if one.startswith("llama-cpp-python"))
    installed = Build.read(RECORD.read_text()) if RECORD.is_file() else None
    backend, cmake_args = os.environ.get("BACKEND", "").strip(), " ".join(os.environ.get("CMAKE_ARGS", "").split())
    cpu = hashlib.sha256(instructions().encode()).hexdigest()[:12] if instructions() else ""
    build = wanted(requirement, installed, backend, cmake_args, cpu=cpu, leave_out=left_out)
    if build is None:
        if installed is not None and not installed.cpu:
            RECORD.write_text(f"{replace(installed, cpu=cpu)}\n")
        return 0
    try:
        native = flags(build.backend, "native", platform.machine(), build.cmake_args)
        cmake_args = f"{shlex.join(native)} {build.cmake_args}".strip()
    except ValueError as error:
        print(f"install_llama: error: {error}", file=sys.stderr)
        return 2
    print(f"compiling llama.cpp for {build.backend}, which takes minutes: {cmake_args}", flush=True)
    code = _compile(build, cmake_args)
    if code:
        print(f"{build.backend} needs {NEEDS[build.backend]}; what is installed stays as it was", file=sys.stderr)
        return code
    RECORD.write_text(f"{build}\n")
    return 0


def _compile(build: Build, cmake_args: str) -> int:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += [*_cache(build, cmake_args), "--force-reinstall", "--no-deps", build.requirement]
    clock = [sys.executable, str(ROOT / "scripts" / "with_clock.py")]
    return subprocess.run([*clock, *pip], env={**os.environ, "CMAKE_ARGS": cmake_args}, check=False).returncode


def _cache(build: Build, cmake_args: str) -> list[str]:
    """Return where pip keeps the wheel: it takes one backend's for another's, so these flags have a place of their own.

    What is compiled against a toolkit is not kept: the toolkit may be another one next time.
    """
    where = [sys.executable, "-m", "pip", "cache", "dir"]
    folder = subprocess.run(where, capture_output=True, text=True, check=False).stdout.strip()
    if build.backend != DEFAULT_BACKEND or not folder:
        return ["--no-cache-dir"]
    key = hashlib.sha256(f"{cmake_args} {instructions()}".encode()).hexdigest()[:12]
    return ["--cache-dir", str(Path(folder) / "llm-local" / key)]


if __name__ == "__main__":
    sys.exit(main())
