"""Whether a model is on this machine, and if not, where it can be fetched. Asks no network."""

from __future__ import annotations

from pathlib import Path

from llm_local.models.locate import locate, look, missing_shards
from llm_local.models.source import HubFile, Source, local_name, source_of


def find_model(
    name: str, url: str | None, models_dir: Path, *, checksum: str = "sha256:auto", setting: str = "LLM_MODEL"
) -> Path | Source:
    """Return the model's first shard where all of them are here, else where it comes from.

    Looked for in this order: under its name, under the name that its address says, in the hub's cache.

    Args:
        name: see `source_of`; may be empty where there is an address.
        checksum: of the file, which one in the hub's cache has to have.

    Raises:
        StartupError: it is not here, and nothing says where it could be fetched.
    """
    path = _whole(name, models_dir)
    if path is not None:
        return path
    # Imported only here: it takes half a second, which a file on the disk does not need.
    from llm_local.models.hub import cached_model, cached_sha256, endpoint

    source = source_of(name, url, endpoint(), setting=setting)
    if source is None:
        return locate(name, models_dir)
    known_as = local_name(source)
    path = _whole(known_as, models_dir) if known_as is not None else None
    if path is None and isinstance(source, HubFile):
        path = cached_model(source)
        if path is not None and checksum not in ("sha256:auto", "off", f"sha256:{cached_sha256(path)}"):
            path = None
    return path or source


def _whole(name: str, models_dir: Path) -> Path | None:
    path = look(name, models_dir) if name else None
    return path if path is not None and not missing_shards(path) else None
