"""A whole model into the models folder: all shards, checked, under their final names only when they are right.

```
models/                                  one folder, one file system: renaming is atomic
    x-00001-of-00002.gguf                whole and checked
    .downloads/x-00002-of-00002.gguf.1f2e3d4c5b6a.partial    what has come of the next one
    .downloads/x-00001-of-00002.gguf.origin                  where it came from
    .downloads/x-00001-of-00002.gguf.lock                    who fetches; the system frees it when the process ends
```
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from filelock import FileLock, Timeout

from llm_local.errors import StartupError
from llm_local.models import hub
from llm_local.models.catalogue import find
from llm_local.models.download import Download, http_client
from llm_local.models.names import parse_name
from llm_local.models.origin import DOWNLOADS, check_origin, note_origin
from llm_local.models.patience import Patience
from llm_local.models.progress import Progress, size
from llm_local.models.remote import RemoteFile
from llm_local.models.source import HubFile, Source
from llm_local.models.web import web_files

log = logging.getLogger(__name__)

SPARE_BYTES = 64 * 2**20
"""Left free on the disk beside the model."""
LOCK_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a model is to be fetched.

    Attributes:
        checksum: `sha256:auto` (what the server publishes), `sha256:<hex>`, or `off`.
        free_bytes: of the disk of a folder; tests have their own.
    """

    models_dir: Path
    checksum: str = "sha256:auto"
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free


def pull(source: Source, wishes: Wishes, patience: Patience, progress: Progress) -> Path:
    """Fetch what is missing of a model and return its first shard.

    Raises:
        StartupError: it cannot be had; one line says why and what to do. What has come is kept for the next time.
    """
    folder = wishes.models_dir / DOWNLOADS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with http_client() as client:
            progress.say(f"looking for {source}")
            files = _remote_files(source, client, patience, progress)
            with _lock(folder / f"{files[0].name}.lock", patience, progress):
                _Pull(source, files, wishes, client, patience, progress).run()
    except BrokenPipeError:
        raise  # Of whoever reads how far it is, not of the folder.
    except OSError as error:
        raise StartupError(
            f"cannot write into {wishes.models_dir}/: {error.strerror or error}; name another folder in LLM_MODELS_DIR"
        ) from None
    return wishes.models_dir / files[0].name


def _remote_files(source: Source, client: httpx2.Client, patience: Patience, progress: Progress) -> list[RemoteFile]:
    if isinstance(source, HubFile):
        return hub.Hub(source, patience, progress).files()
    return web_files(source, client, patience, progress)


@contextmanager
def _lock(path: Path, patience: Patience, progress: Progress) -> Iterator[None]:
    """Hold the lock of a model; whoever comes second waits, and finds the files there."""
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            progress.say(f"another process is fetching {path.stem}: waiting for it")
            patience.sleep(LOCK_POLL_S)
            patience.check(f"waiting for the process that fetches {path.stem}")
    try:
        yield
    finally:
        lock.release()


class _Pull:
    """One download, under its lock."""

    def __init__(
        self,
        source: Source,
        files: list[RemoteFile],
        wishes: Wishes,
        client: httpx2.Client,
        patience: Patience,
        progress: Progress,
    ) -> None:
        self._source, self._wishes, self._client = source, wishes, client
        self._patience, self._progress = patience, progress
        self._files = [_with_checksum(file, files, wishes.checksum) for file in files]
        self._folder = wishes.models_dir / DOWNLOADS

    def run(self) -> None:
        missing = [file for file in self._files if not self._is_there(file)]
        missing = [file for file in missing if not self._from_cache(file)]
        if not missing:
            return
        self._check_space(missing)
        total = sum(file.size or 0 for file in self._files)
        there = total - sum((file.size or 0) - self._partial_bytes(file) for file in missing)
        what = str(parse_name(self._files[0].name))
        self._progress.begin(what, total if all(file.size for file in self._files) else 0, there)
        for file in missing:
            self._fetch(file)

    def _is_there(self, file: RemoteFile) -> bool:
        """Tell whether a file is under its final name already.

        Raises:
            StartupError: something of another model, or of another size, is.
        """
        path = self._wishes.models_dir / file.name
        if not path.is_file():
            return False
        check_origin(path, self._source)
        have = path.stat().st_size
        if file.size not in (None, have):
            raise StartupError(
                f"{path} has {have} bytes, and {self._source} has {file.size}: remove the file and start again"
            )
        return True

    def _from_cache(self, file: RemoteFile) -> bool:
        """Take a file that is in the hub's cache: a second name for it, or a copy on another disk."""
        if not isinstance(self._source, HubFile):
            return False
        cached = hub.cached_file(self._source.repository, file)
        if cached is None or (file.sha256 and hub.cached_sha256(cached) != file.sha256):
            return False
        partial = self._folder / file.partial_name
        partial.unlink(missing_ok=True)
        try:
            os.link(cached.resolve(), partial)
        except OSError:
            self._check_space([file])
            shutil.copyfile(cached, partial)
        self._finish(file, partial)
        return True

    def _partial_bytes(self, file: RemoteFile) -> int:
        try:
            have = (self._folder / file.partial_name).stat().st_size
        except FileNotFoundError:
            return 0
        return have if file.size is None or have <= file.size else 0

    def _check_space(self, missing: list[RemoteFile]) -> None:
        needed = sum((file.size or 0) - self._partial_bytes(file) for file in missing)
        free = self._wishes.free_bytes(self._wishes.models_dir)
        if needed and needed + SPARE_BYTES > free:
            for file in missing:
                self._drop_other_versions(file)
            free = self._wishes.free_bytes(self._wishes.models_dir)
        if needed and needed + SPARE_BYTES > free:
            raise StartupError(
                f"{parse_name(missing[0].name)} needs {size(needed)} more in {self._wishes.models_dir}/, and "
                f"{size(free)} are free: free some space, name another folder in LLM_MODELS_DIR"
                f"{_smaller(missing[0].name, free)}"
            )

    def _fetch(self, file: RemoteFile) -> None:
        partial = self._folder / file.partial_name
        for last in (False, True):
            fetched = Download(file, partial, self._client, self._patience, self._progress).run()
            if file.sha256 in (None, fetched.sha256):
                break
            n_bytes = partial.stat().st_size
            partial.unlink()
            if fetched.in_one or last:
                raise StartupError(_mismatch(file, fetched.sha256, self._wishes.checksum))
            self._progress.advance(-n_bytes)
            self._progress.say(f"{file.name} came in pieces that do not fit together: once more from the beginning")
        if file.sha256 is None and self._wishes.checksum != "off":
            log.warning(
                "%s was not checked: its server publishes no sha256 (LLM_MODEL_CHECKSUM can give it)", file.name
            )
        self._finish(file, partial)

    def _finish(self, file: RemoteFile, partial: Path) -> None:
        path = self._wishes.models_dir / file.name
        os.replace(partial, path)
        note_origin(path, self._source)
        self._drop_other_versions(file)

    def _drop_other_versions(self, file: RemoteFile) -> None:
        for path in self._folder.glob(f"{glob.escape(file.name)}.*.partial"):
            if path.name != file.partial_name:
                path.unlink(missing_ok=True)


def _with_checksum(file: RemoteFile, files: list[RemoteFile], checksum: str) -> RemoteFile:
    """Return the file with the sha256 that it has to have."""
    wanted = file.sha256
    if checksum == "off":
        wanted = None
    elif checksum != "sha256:auto":
        wanted = checksum.removeprefix("sha256:").lower()
        if len(files) > 1:
            raise StartupError(
                f"LLM_MODEL_CHECKSUM is that of one file, and {file.name} is one of {len(files)} shards: "
                "use sha256:auto, which checks each of them"
            )
    return RemoteFile(file.name, file.url, file.headers, file.size, wanted, file.version)


def _mismatch(file: RemoteFile, got: str, checksum: str) -> str:
    told = "the server publishes" if checksum == "sha256:auto" else "LLM_MODEL_CHECKSUM is"
    other = (
        "check LLM_MODEL_CHECKSUM" if checksum != "sha256:auto" else "a proxy or a mirror (HF_ENDPOINT) may change it"
    )
    return (
        f"{file.name}: what came has the sha256 {got}, and {told} {file.sha256}; nothing of it was kept. "
        f"Start again; if it stays so, {other}"
    )


def _smaller(name: str, free: int) -> str:
    """Return a hint to a quantization that fits, where the catalogue knows one."""
    model = find(parse_name(name))
    fitting = [file for file in model.files if file.bytes + SPARE_BYTES <= free] if model is not None else []
    if model is None or not fitting:
        return ""
    best = max(fitting, key=lambda file: file.bytes)
    return f", or take {model.name}-{best.quantization.lower()} ({size(best.bytes)})"
