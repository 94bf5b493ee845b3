"""Where a file of the models folder was fetched from, so that a name never stands for another model's file.

Repositories call different models alike: `a/x-GGUF:x-Q4_0.gguf` and `b/x-GGUF:x-Q4_0.gguf`. What was fetched has a
note in `.downloads/NAME.origin`. Files that were put there by hand, or changed since, are what they are called.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from llm_local.errors import StartupError
from llm_local.models.source import HubFile, Source

DOWNLOADS = ".downloads"


def note_origin(path: Path, source: Source) -> None:
    """Note where a file has just come from. Without a note it could not be told, and nothing else would be wrong."""
    note = _note(path)
    with contextlib.suppress(OSError):
        temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"from": _place(source), **_state(path)}))
        temporary.replace(note)


def is_noted(path: Path) -> bool:
    """Tell whether it is known where a file came from."""
    return _read(path) is not None


def check_origin(path: Path, source: Source, url_setting: str | None = None) -> None:
    """Refuse a file that is known to come from elsewhere than `source`.

    Args:
        url_setting: where `source` was written, beside the name of the file itself.

    Raises:
        StartupError: it does.
    """
    known = _read(path)
    if known is None or known.lower() == _place(source).lower():
        return
    if url_setting is not None:
        raise StartupError(
            f"{path} came from {known}, and {url_setting} is {source} now: "
            f"remove the file to have it fetched from there, or unset {url_setting} to keep it"
        )
    raise StartupError(
        f"{path} came from {known}, and {source} is another model whose file has the same name: "
        "name another folder in LLM_MODELS_DIR for it, or remove that file first"
    )


def _place(source: Source) -> str:
    """Return what files of one name have in common that are the same: a repository, an address without its query."""
    return source.repository if isinstance(source, HubFile) else str(source)


def _note(path: Path) -> Path:
    return path.parent / DOWNLOADS / f"{path.name}.origin"


def _read(path: Path) -> str | None:
    try:
        noted = json.loads(_note(path).read_text())
        place = noted.pop("from")
        return str(place) if noted == _state(path) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _state(path: Path) -> dict[str, int]:
    """Return by what a file is known that nobody has changed since."""
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
