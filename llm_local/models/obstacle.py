"""What stands in the way of fetching a model, as far as this machine alone can tell. Asks no network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llm_local.models.catalogue import find_repository
from llm_local.models.hub import offline
from llm_local.models.names import parse_name, shard_names
from llm_local.models.origin import DOWNLOADS
from llm_local.models.progress import size
from llm_local.models.pull import SPARE_BYTES
from llm_local.models.source import HubFile, Source


def obstacle(source: Source, models_dir: Path) -> str | None:
    """Return in one line why a model that is not here cannot be fetched, None where nothing is known against it."""
    refusal = offline(source) if isinstance(source, HubFile) else None
    if refusal is not None:
        return refusal
    folder = models_dir.absolute()
    there = next((parent for parent in (folder, *folder.parents) if os.path.exists(parent)), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{source} has to be fetched, and this process may not write into {there}/: name another LLM_MODELS_DIR"
    missing, free = _missing_bytes(source, models_dir), shutil.disk_usage(there).free
    if missing and missing + SPARE_BYTES > free:
        return f"{source} needs {size(missing)} more in {models_dir}/, and {size(free)} are free"
    return None


def _missing_bytes(source: Source, models_dir: Path) -> int:
    """Return what has not come yet of a model of the catalogue, 0 of any other."""
    model = find_repository(source.repository) if isinstance(source, HubFile) else None
    if model is None or not isinstance(source, HubFile):
        return 0
    quantization = parse_name(source.file).quantization if source.file is not None else source.quantization
    published = model.published(quantization)
    if published is None:
        return 0
    names = shard_names(published.file)
    whole = [models_dir / name for name in names]
    parts = [path for path in (models_dir / DOWNLOADS).glob("*.partial") if path.name.startswith(tuple(names))]
    return max(published.bytes - sum(path.stat().st_size for path in (*whole, *parts) if path.is_file()), 0)
