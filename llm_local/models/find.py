"""Whether a model is on this machine, and if not, where it can be fetched. Asks no network."""

from __future__ import annotations

from pathlib import Path

from llm_local.models.catalogue import find_repository
from llm_local.models.endpoint import check_endpoint
from llm_local.models.locate import ggufs, locate, look, missing_shards
from llm_local.models.names import parse_name
from llm_local.models.origin import check_origin, is_noted
from llm_local.models.source import HubFile, Source, is_source, local_name, repository_stem, source_of


def find_model(
    name: str, url: str | None, models_dir: Path, *, checksum: str = "sha256:auto", setting: str = "LLM_MODEL"
) -> Path | Source:
    """Return the model's first shard where all of them are here, else where it comes from.

    Looked for in this order: under its name, under the name that its address says, in the hub's cache.

    Args:
        name: see `source_of`; may be empty where there is an address.
        checksum: of the file, which one in the hub's cache has to have.

    Raises:
        StartupError: it is not here, and nothing says where it could be fetched; or its name is that of another model,
            or the file that it names was fetched from elsewhere than `url`.
    """
    path = _whole(name, models_dir)
    named = path is not None and not is_source(name)
    if path is not None and named and (not url or not is_noted(path)):
        return path
    check_endpoint()
    # Imported only here: it takes half a second, which a file on the disk does not need.
    from llm_local.models.hub import cached_model, cached_sha256, endpoint

    source = source_of(name, url, endpoint(), setting=setting)
    if source is None:
        return path or locate(name, models_dir, setting=setting)
    if path is None:
        known_as = local_name(source)
        path = _whole(known_as, models_dir) if known_as is not None else _only_one(source, models_dir)
    if path is not None:
        check_origin(path, source, f"{setting}_URL" if named else None)
    elif isinstance(source, HubFile):
        path = cached_model(source)
        if path is not None and checksum not in ("sha256:auto", "off", f"sha256:{cached_sha256(path)}"):
            path = None
    return path or source


def _only_one(source: Source, models_dir: Path) -> Path | None:
    """Return the model that a repository without more means, where one alone is here that is called as it is."""
    if not isinstance(source, HubFile) or find_repository(source.repository) is not None:
        return None
    stem = repository_stem(source)
    there = [path for path in ggufs(models_dir) if parse_name(path.name).stem == stem]
    return there[0] if len(there) == 1 and not missing_shards(there[0]) else None


def _whole(name: str, models_dir: Path) -> Path | None:
    path = look(name, models_dir) if name else None
    return path if path is not None and not missing_shards(path) else None
