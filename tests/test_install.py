"""`make install`: which flags llama.cpp gets for a backend and a CPU, and when it is compiled again."""

from __future__ import annotations

import importlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
LLAMA = "llama-cpp-python[server]==1.0"


@pytest.fixture(scope="module")
def scripts() -> tuple[ModuleType, ModuleType]:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module("compile_flags"), importlib.import_module("install_llama")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.mark.parametrize(
    ("backend", "cpu", "machine", "has", "lacks"),
    [
        ("cpu", "native", "x86_64", "-DGGML_NATIVE=ON", "-DGGML_AVX"),
        ("cpu", "portable", "x86_64", "-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON", "AVX512=ON"),
        ("cpu", "x86-64-v2", "AMD64", "-DGGML_SSE42=ON -DGGML_AVX=OFF", "AVX2=ON"),
        ("cpu", "x86-64-v4", "x86_64", "-DGGML_F16C=ON -DGGML_AVX512=ON", "AVX2=OFF"),
        ("cpu", "portable", "aarch64", "-DGGML_NATIVE=OFF", "AVX"),
        ("cpu", "armv8.2-a+dotprod", "arm64", "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod", "AVX"),
        ("cuda", "portable", "x86_64", "-DGGML_CUDA=ON -DGGML_NATIVE=OFF", "VULKAN"),
        ("openblas", "native", "x86_64", "-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS", "CUDA"),
    ],
)
def test_flags(
    scripts: tuple[ModuleType, ModuleType], backend: str, cpu: str, machine: str, has: str, lacks: str
) -> None:
    text = " ".join(scripts[0].flags(backend, cpu, machine))
    assert has in text
    assert lacks not in text


@pytest.mark.parametrize(
    ("backend", "cpu", "machine", "says"),
    [
        ("cudda", "native", "x86_64", "unknown BACKEND 'cudda'; there are cpu, cuda, vulkan, opencl, metal, openblas"),
        (
            "cpu",
            "x86-64-v9",
            "x86_64",
            "unknown CPU_ARCH 'x86-64-v9' for x86_64; there are native, portable, x86-64-v2",
        ),
        ("cpu", "x86-64-v3", "aarch64", "unknown CPU_ARCH 'x86-64-v3' for aarch64"),
    ],
)
def test_an_unknown_name_says_which_there_are(
    scripts: tuple[ModuleType, ModuleType], backend: str, cpu: str, machine: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        scripts[0].flags(backend, cpu, machine)


@pytest.mark.parametrize(
    ("installed", "backend", "cmake_args", "compiled"),
    [
        (None, "", "", None),
        (None, "cuda", "", "cuda"),
        (None, "", "-DX=1", "cpu -DX=1"),
        ("cuda", "", "", None),
        ("cuda", "cuda", "", None),
        ("cuda", "vulkan", "", "vulkan"),
        ("cuda", "cuda", "-DX=1", "cuda -DX=1"),
        ("cuda -DX=1 -DY=2", "cuda", "-DX=1 -DY=2", None),
        ("cuda -DX=1 -DY=2", "cuda", "", None),
        ("cuda -DX=1", "cpu", "", "cpu"),
    ],
)
def test_it_is_compiled_again_when_what_is_asked_for_changed(
    scripts: tuple[ModuleType, ModuleType], installed: str | None, backend: str, cmake_args: str, compiled: str | None
) -> None:
    build = scripts[1].Build.read(f"{LLAMA} {installed}\n") if installed else None
    found = scripts[1].wanted(LLAMA, build, backend, cmake_args, cpu="", leave_out=lambda _: [])
    assert (str(found) if found else None) == (f"{LLAMA} {compiled}" if compiled else None)


@pytest.mark.parametrize(
    ("installed", "without", "compiled"),
    [
        (None, "-mno-a", "cpu\n-mno-a"),
        ("cpu", "-mno-a", "cpu\n-mno-a"),
        ("cpu -DX=1\n-mno-a", "-mno-a", None),
        ("cuda -DX=1\n-mno-a", "-mno-a -mno-b", "cuda -DX=1\n-mno-a -mno-b"),
        ("cpu\n-mno-a", "", "cpu"),
    ],
)
def test_it_is_compiled_again_when_something_else_is_left_out(
    scripts: tuple[ModuleType, ModuleType], installed: str | None, without: str, compiled: str | None
) -> None:
    build = scripts[1].Build.read(f"{LLAMA} {installed}\n") if installed else None
    found = scripts[1].wanted(LLAMA, build, "", "", cpu="", leave_out=lambda _: without.split())
    assert (str(found) if found else None) == (f"{LLAMA} {compiled}" if compiled else None)


def test_another_version_is_compiled_for_the_same_backend(scripts: tuple[ModuleType, ModuleType]) -> None:
    old = scripts[1].Build.read("llama-cpp-python==0.9 vulkan -DX=1")
    new = scripts[1].wanted(LLAMA, old, "", "", cpu="", leave_out=lambda _: [])
    assert str(new) == f"{LLAMA} vulkan -DX=1"


def test_what_another_cpu_compiled_is_compiled_again(scripts: tuple[ModuleType, ModuleType]) -> None:
    def compiled(record: str, cpu: str) -> str:
        build = scripts[1].Build.read(f"{LLAMA} {record}")
        return str(scripts[1].wanted(LLAMA, build, "cpu", "", cpu=cpu, leave_out=lambda _: []))

    assert compiled("cpu\n\nold", "new") == f"{LLAMA} cpu\n\nnew"
    assert compiled("cpu\n\nold", "old") == "None"
    assert compiled("cpu", "new") == "None", "a record of an earlier version does not name the CPU"
    assert compiled("cpu\n\nold", "") == "None", "elsewhere than on Linux it is not known"


@pytest.mark.slow
def test_a_record_without_a_cpu_gets_the_one_that_it_is_used_on(checkout: Path) -> None:
    (checkout / "cpuinfo").write_text("flags : avx2")
    requirement = next(
        line.split('"')[1] for line in (ROOT / "pyproject.toml").read_text().splitlines() if '"llama-cpp-python' in line
    )
    (checkout / ".venv/.built-for").write_text(f"{requirement} cpu\n")
    assert install(checkout)[2] == ""
    assert len((checkout / ".venv/.built-for").read_text().split("\n")[2]) == 12
    (checkout / ".venv/.installed").unlink()
    (checkout / "cpuinfo").write_text("flags : avx2 avx512f")
    assert "--force-reinstall" in install(checkout)[2]


def test_the_compiler_that_was_chosen_once_is_asked_again(scripts: tuple[ModuleType, ModuleType]) -> None:
    asked: list[str] = []

    def leave_out(cmake_args: str) -> list[str] | None:
        asked.append(cmake_args)
        return None

    old = scripts[1].Build.read(f"{LLAMA} cpu -DCMAKE_CXX_COMPILER=clang++\n-mno-a")
    assert scripts[1].wanted(LLAMA, old, "", "", cpu="", leave_out=leave_out) is None
    assert asked == ["-DCMAKE_CXX_COMPILER=clang++"]
    assert scripts[1].wanted(LLAMA, old, "cuda", "-DX=1", cpu="", leave_out=leave_out).without == "-mno-a"
    assert asked[1:] == ["-DX=1"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose .venv has a Python that runs our scripts, and only notes what pip is asked for."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "as_venv.py").write_text(
        "import runpy, sys\n"
        "sys.prefix, sys.executable = '.venv', '.venv/bin/python'\n"
        "sys.path.insert(0, 'scripts')\n"
        "import pathlib, compile_flags\n"
        "compile_flags.CPUINFO = pathlib.Path('cpuinfo')\n"
        "runpy.run_path('scripts/install_llama.py', run_name='__main__')\n"
    )
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f"  *install_llama.py) exec {sys.executable} as_venv.py ;;\n"
        '  *"pip cache dir") cat cache 2>/dev/null ;;\n'
        '  *" install "*) echo "CMAKE_ARGS=$CMAKE_ARGS $*" >> pip.log; test ! -e broken ;;\n'
        "esac\n"
    )
    python.chmod(0o755)
    return tmp_path


def install(checkout: Path, *arguments: str) -> tuple[int, str, str]:
    """Run `make install` and return the exit code, what it printed, and what pip compiled."""
    log = checkout / "pip.log"
    log.unlink(missing_ok=True)
    command = ["make", "install", f"PYTHON={sys.executable}", *arguments]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    lines = log.read_text().splitlines() if log.exists() else []
    return (
        result.returncode,
        result.stdout + result.stderr,
        "\n".join(line for line in lines if "--force-reinstall" in line),
    )


def compiler(folder: Path, *, code: int = 0, program: int | None = 0) -> str:
    """Make a compiler that ends with a code, and whose programs end with another one; it makes none for None."""
    path = folder / "compiler"
    makes = f'test "$last" = - || {{ printf "#!/bin/sh\\nexit {program}\\n" > "$last"; chmod +x "$last"; }}\n'
    makes = "" if program is None else makes
    path.write_text(f"#!/bin/sh\nfor last; do :; done\n{makes}exit {code}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("cpu", "compiles", "runs", "fails"),
    [
        ("flags : avx2 amx_tile amx_int8", 0, 0, False),
        ("flags : avx2 amx_tile amx_int8", 0, 1, True),
        ("flags : avx2 amx_tile amx_int8", 1, None, True),
        ("flags : avx2", 0, 1, False),
        (None, 0, 1, False),
    ],
)
def test_amx_is_left_out_where_what_is_compiled_for_it_does_not_run(
    scripts: tuple[ModuleType, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cpu: str | None,
    compiles: int,
    runs: int | None,
    fails: bool,
) -> None:
    if cpu is not None:
        (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(scripts[0], "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("CXX", compiler(tmp_path, code=compiles, program=runs))
    assert scripts[0].left_out() == (["-U__AMX_INT8__"] if fails else [])
    native = scripts[0].flags("cpu", "native", "x86_64")
    assert native == ["-DGGML_NATIVE=ON", *([f"{scripts[0].RELEASE} -U__AMX_INT8__"] if fails else [])]
    assert "-U__AMX_INT8__" not in " ".join(scripts[0].flags("cpu", "portable", "x86_64"))


@pytest.mark.parametrize(
    ("cpu", "macros", "used"),
    [
        ("flags : avx512f avx512_fp16", "#define __AVX512F__ 1\n#define __AVX512FP16__ 1", True),
        ("flags : avx512f avx512_fp16", "#define __AVX512F__ 1", False),
        ("flags : avx512f", "#define __AVX512FP16__ 1", False),
    ],
)
def test_avx512_fp16_is_left_out_where_the_compiler_would_use_it(
    scripts: tuple[ModuleType, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cpu: str,
    macros: str,
    used: bool,
) -> None:
    """Compilers that do not know it define no such macro, and would not know the option that leaves it out."""
    (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(scripts[0], "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "compiler").write_text(f"#!/bin/sh\necho '{macros}'\n")
    (tmp_path / "compiler").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "compiler"))
    left_out = [f"{scripts[0].RELEASE} -mno-avx512fp16"] if used else []
    assert scripts[0].flags("cpu", "native", "x86_64") == ["-DGGML_NATIVE=ON", *left_out]
    assert "avx512fp16" not in " ".join(scripts[0].flags("cpu", "x86-64-v4", "x86_64"))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("CMAKE_ARGS", f"-DX=1 '-DCMAKE_CXX_COMPILER={tmp_path / 'compiler'}'")
    assert scripts[0].left_out() == (["-mno-avx512fp16"] if used else []), "CMake's compiler is asked"
    monkeypatch.setenv("CMAKE_ARGS", "")
    other = f"'-DCMAKE_CXX_COMPILER={tmp_path / 'compiler'}'"
    assert scripts[0].left_out(other) == (["-mno-avx512fp16"] if used else []), "CMake's compiler of an earlier install"


def test_without_a_compiler_nobody_can_say_what_is_to_be_left_out(
    scripts: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scripts[0], "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    for feature in ("amx_int8", "avx512_fp16"):
        (tmp_path / "cpuinfo").write_text(f"flags : {feature}")
        assert scripts[0].left_out() is None
    assert scripts[0].flags("cpu", "native", "x86_64") == ["-DGGML_NATIVE=ON"]
    (tmp_path / "cpuinfo").write_text("flags : avx2")
    assert scripts[0].left_out() == []


def test_flags_with_spaces_are_quoted_as_they_are_read(
    scripts: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scripts[0], "left_out", lambda cmake_args: ["-mno-a", "-mno-b"])
    monkeypatch.setattr(sys, "argv", ["compile_flags.py", "cpu", "native"])
    assert scripts[0].main() == 0
    assert shlex.split(capsys.readouterr().out) == ["-DGGML_NATIVE=ON", f"{scripts[0].RELEASE} -mno-a -mno-b"]


@pytest.mark.slow
def test_make_install_compiles_by_itself_where_what_pip_compiles_would_not_run(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "cpuinfo").write_text("flags : amx_int8")
    monkeypatch.setenv("CXX", compiler(checkout, program=0))
    assert install(checkout)[2] == ""
    monkeypatch.setenv("CXX", compiler(checkout, program=1))
    (checkout / "cache").write_text("/pips/cache\n")
    (checkout / ".venv/.installed").unlink()
    compiled = install(checkout)[2]
    assert cmake_args(compiled) == ["-DGGML_NATIVE=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O3 -DNDEBUG -U__AMX_INT8__"]
    assert "--cache-dir /pips/cache/llm-local/" in compiled, "pip's own cache may have a wheel that does not run"
    (checkout / ".venv/.installed").unlink()
    assert install(checkout)[2] == ""
    assert "--no-cache-dir" in install(checkout, "BACKEND=vulkan")[2]


def cmake_args(compiled: str) -> list[str]:
    """Return what pip was given in CMAKE_ARGS, as scikit-build-core reads it."""
    return shlex.split(compiled.removeprefix("CMAKE_ARGS=").partition(" scripts/with_clock.py")[0])


@pytest.mark.slow
def test_make_install_compiles_again_when_something_else_is_to_be_left_out(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "cpuinfo").write_text("flags : amx_int8 avx512_fp16")
    (checkout / "cache").write_text("/pips/cache\n")
    monkeypatch.setenv("CXX", compiler(checkout, program=1))
    assert cmake_args(install(checkout, "CMAKE_ARGS=-DX=1\n-DY=2")[2])[1:] == [
        "-DCMAKE_CXX_FLAGS_RELEASE=-O3 -DNDEBUG -U__AMX_INT8__",
        "-DX=1",
        "-DY=2",
    ]
    assert install(checkout)[2] == "", "nothing changed"
    program = checkout / "compiler"
    program.write_text(program.read_text().removesuffix("exit 0\n") + "echo '#define __AVX512FP16__ 1'\nexit 0\n")
    script = checkout / "scripts/compile_flags.py"
    script.write_text(script.read_text() + "\n# A newer version of ours.\n")
    assert cmake_args(install(checkout)[2])[1:] == [
        "-DCMAKE_CXX_FLAGS_RELEASE=-O3 -DNDEBUG -U__AMX_INT8__ -mno-avx512fp16",
        "-DX=1",
        "-DY=2",
    ]
    monkeypatch.setenv("CXX", str(checkout / "no-such-compiler"))
    script.write_text(script.read_text() + "\n# And a newer one.\n")
    assert install(checkout)[2] == "", "nobody can say what is to be left out: what is installed stays"


@pytest.mark.slow
def test_make_install_compiles_for_the_backend_once_and_keeps_to_it(checkout: Path) -> None:
    assert install(checkout)[2] == ""
    code, said, compiled = install(checkout, "BACKEND=openblas")
    assert code == 0, said
    assert "compiling llama.cpp for openblas" in said
    assert compiled.startswith("CMAKE_ARGS=-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS -DGGML_NATIVE=ON ")
    assert "--no-cache-dir --force-reinstall --no-deps llama-cpp-python" in compiled
    assert install(checkout, "BACKEND=openblas")[2] == ""
    assert install(checkout)[2] == ""
    assert "-DGGML_VULKAN=ON" in install(checkout, "BACKEND=vulkan")[2]


@pytest.mark.slow
def test_make_install_keeps_the_flags_that_the_user_gives(checkout: Path) -> None:
    compiled = install(checkout, "BACKEND=cuda", "CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=89 -DX=1")[2]
    assert compiled.startswith("CMAKE_ARGS=-DGGML_CUDA=ON -DGGML_NATIVE=ON -DCMAKE_CUDA_ARCHITECTURES=89 -DX=1 ")


@pytest.mark.slow
def test_make_install_of_an_unknown_backend_is_one_clear_line(checkout: Path) -> None:
    code, said, compiled = install(checkout, "BACKEND=cudda")
    assert code != 0
    assert "unknown BACKEND 'cudda'; there are cpu, cuda, vulkan, opencl, metal, openblas" in said
    assert compiled == ""


@pytest.mark.slow
def test_a_backend_that_does_not_compile_says_what_it_needs_and_is_tried_again(checkout: Path) -> None:
    (checkout / "broken").touch()
    code, said, _ = install(checkout, "BACKEND=vulkan")
    assert code != 0
    assert "vulkan needs on Debian and Ubuntu: apt install libvulkan-dev glslc" in said
    (checkout / "broken").unlink()
    assert "-DGGML_VULKAN=ON" in install(checkout, "BACKEND=vulkan")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "found", "code", "says"),
    [
        ('{"id": "PYSEC-2024-60", "aliases": ["CVE-2024-3651"]}', 0, 0, "--ignore-vuln CVE-2025-69872 --requirement"),
        ('{"id": "PYSEC-2024-60", "aliases": ["CVE-2024-3651"]}', 1, 2, "Error 1"),
        ("", 0, 2, "nothing was audited: the advisories of pypi.org cannot be had from here"),
    ],
    ids=["nothing found", "something found", "no advisories"],
)
def test_make_audit_is_green_only_where_advisories_can_be_had(
    checkout: Path, known: str, found: int, code: int, says: str
) -> None:
    """pip-audit finds nothing, and says so with 0, where an index serves packages and no advisories."""
    assert install(checkout)[0] == 0
    program = checkout / ".venv-audit/bin/pip-audit"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *known.txt) echo \'{{"vulns": [{known}]}}\'; exit 1 ;; esac\n'
        f"echo audited >> audit.log; exit {found}\n"
    )
    program.chmod(0o755)
    command = ["make", "audit", f"PYTHON={sys.executable}"]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert says in result.stdout + result.stderr
    assert (checkout / "audit.log").exists() == bool(known)
