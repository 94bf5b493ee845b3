"""Which files of a repository are meant: old names, other spellings and single-file names against what is published."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from pathlib import PurePosixPath

from llm_local.errors import StartupError
from llm_local.models.catalogue import find_repository, spellings
from llm_local.models.names import first_shards, parse_name, shard_names
from llm_local.models.source import HubFile


def choose(source: HubFile, published: SequenceOf[str]) -> list[str]:
    """Return the files that `source` means, all shards in order.

    Args:
        published: paths of all files of the repository.

    Raises:
        StartupError: none is meant, or several are; the message names those that are there.
    """
    models = first_shards(published)
    found = _by_file(source.file, models) if source.file is not None else _by_quantization(source, models)
    if not found:
        raise StartupError(f"{source.repository} publishes no {source.file or source.quantization}{_there(models)}")
    if len(found) > 1:
        raise StartupError(
            f"{source.repository} publishes several models, name one as {source.repository}:FILE{_there(found)}"
        )
    first = found[0]
    folder = PurePosixPath(first).parent
    names = [str(folder / name) for name in shard_names(PurePosixPath(first).name)]
    missing = [name for name in names if name not in published]
    if missing:
        raise StartupError(
            f"{source.repository} lacks {missing[0]}, one of the {len(names)} shards of {source.file or first}"
        )
    return names


def _by_file(file: str, models: SequenceOf[str]) -> list[str]:
    asked = PurePosixPath(file)
    wanted = shard_names(asked.name)[0].lower()
    found = [name for name in models if PurePosixPath(name).name.lower() == wanted]
    if not found:
        meant = spellings(file)
        found = [name for name in models if parse_name(name) in meant]
    beside = [name for name in found if PurePosixPath(name).parent == asked.parent]
    return beside[:1] or found


def _by_quantization(source: HubFile, models: SequenceOf[str]) -> list[str]:
    known = find_repository(source.repository)
    wanted = source.quantization or (known.default if known is not None else None)
    if wanted is None:
        return list(models)
    return [name for name in models if parse_name(name).quantization == wanted]


def _there(models: SequenceOf[str]) -> str:
    if not models:
        return "; there is no GGUF in it"
    names = sorted({_unsharded(name) for name in models})
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"; there are {shown}"


def _unsharded(name: str) -> str:
    count = len(shard_names(name))
    return name if count == 1 else f"{name[: -len('-00001-of-00001.gguf')]}.gguf ({count} shards)"
