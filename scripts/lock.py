"""Write requirements/*.txt, what the images install, with versions and hashes: `lock.py [--upgrade]`. Needs uv.

Versions that are there already stay as long as pyproject.toml allows them; `--upgrade` takes the newest. The files:
what compiles (build), llama-cpp-python alone (llama: a layer of its own, because it takes minutes to compile), what
serves (serve), and the embedded model without the program that it is a plug-in of (embedded).
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ("scikit-build-core", "hatchling", "pip>=25")
OLDEST_PYTHON = "3.11"


def main() -> int:
    """Return uv's exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    llama = next(one for one in project["dependencies"] if one.startswith("llama-cpp-python"))
    embedded = project["optional-dependencies"]["embedded"]
    _lock("build", list(BUILD))
    _lock("llama", [llama], "--no-deps")
    _lock("serve", project["dependencies"])
    _lock("embedded", embedded, "--no-deps")
    return 0


def _lock(name: str, requirements: list[str], *options: str) -> None:
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--quiet",
        "-",
        "--output-file",
        f"requirements/{name}.txt",
    ]
    command += ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes", "--no-annotate"]
    command += ["--custom-compile-command", "make lock", *options, *sys.argv[1:]]
    subprocess.run(command, input="\n".join(requirements), text=True, check=True, cwd=ROOT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
