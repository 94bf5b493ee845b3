"""The JSON file of a run: everything that the tables show, and what is needed to read it in a year."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from llm_local.bench.options import Options
from llm_local.bench.run import Findings
from llm_local.bench.verdict import Check
from llm_local.errors import StartupError

PACKAGES = ("llm-local", "llama-cpp-python", "llguidance", "numpy", "uvloop")


def document(findings: Findings, options: Options, checks: list[Check], *, complete: bool) -> dict[str, Any]:
    """Return the findings as JSON values; what is not a number is null."""
    whole = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "complete": complete,
        "machine": machine(),
        "versions": versions(),
        "arguments": options.shown(),
        "servers": findings.servers,
        "characters_per_token": {
            "russian": findings.scale.russian,
            "english": findings.scale.english,
            "json": findings.scale.json,
        },
        "verdict": [asdict(check) for check in checks],
        "runs": [run.as_json() for run in findings.runs],
    }
    return {name: _finite(value) for name, value in whole.items()}


def check(path: Path) -> None:
    """See to it that the file can be written, before the hours that fill it.

    Raises:
        StartupError: it cannot.
    """
    if path.is_dir():
        raise StartupError(f"{path} is a folder: name a file in it")
    partial = _partial(path)
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise StartupError(f"cannot write {path}: {error.strerror}") from None


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def write(path: Path, whole: dict[str, Any]) -> None:
    """Write the file; an earlier one stays whole until the new one is.

    Raises:
        StartupError: it cannot be written.
    """
    partial = _partial(path)
    try:
        partial.write_text(json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StartupError(f"cannot write {path}: {error.strerror}") from None


def machine() -> dict[str, Any]:
    """Return what this machine is; the load comes from it, and often the servers run on it."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cpus": usable,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Return Python's version and those of the packages that matter, as far as they are installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
