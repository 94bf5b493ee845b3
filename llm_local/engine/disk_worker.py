"""The thread that reads and writes the disk tier's files, so that the engine thread never waits for a disk."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm_local.engine import disk_file
from llm_local.engine.radix_tree import Tokens
from llm_local.engine.state_bytes import StateBytes

log = logging.getLogger(__name__)

READ_FIRST, WRITE, STOP = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Read:
    """What became of a file that was asked for.

    Attributes:
        data: what `Backend.load` takes; None when the file is gone or not to be used.
        seconds: how long reading and checking took.
    """

    path: Path
    tokens: Tokens
    data: StateBytes | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Written:
    """What became of an entry that was to be written."""

    path: Path
    tokens: Tokens
    n_bytes: int
    done: bool


@dataclass(frozen=True, slots=True)
class Broken:
    """The disk cannot be used any more."""

    why: str


Report = Read | Written | Broken


class DiskWorker:
    """Does one job after the other, reads first.

    Args:
        key: of all files, see `disk_file`.
        report: called on this worker's thread with what became of each read and write.
    """

    def __init__(self, key: str, report: Callable[[Report], None]) -> None:
        self._key = key
        self._report = report
        self._jobs: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = queue.PriorityQueue()
        self._n = 0
        self._lock = threading.Lock()
        self._unwritten = 0
        self._thread = threading.Thread(target=self._run, name="disk cache", daemon=True)
        self._thread.start()

    @property
    def unwritten_bytes(self) -> int:
        """Bytes that wait to be written, and are in memory for that."""
        return self._unwritten

    def read(self, path: Path, tokens: Tokens) -> None:
        """Read an entry that should have these tokens; a `Read` is reported in any case."""
        self._add(READ_FIRST, lambda: self._read(path, tokens))

    def write(self, path: Path, tokens: Tokens, data: StateBytes) -> None:
        """Write an entry; a `Written` is reported in any case."""
        with self._lock:
            self._unwritten += len(data)
        self._add(WRITE, lambda: self._write(path, tokens, data))

    def touch(self, path: Path) -> None:
        """Note on the file that it was used, for the next start."""
        self._add(WRITE, lambda: os.utime(path))

    def remove(self, path: Path) -> None:
        """Remove a file."""
        self._add(WRITE, lambda: path.unlink(missing_ok=True))

    def close(self, timeout_s: float) -> bool:
        """Do what is left and end the thread; False when that takes longer than `timeout_s`."""
        self._add(STOP, None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _add(self, priority: int, job: Callable[[], None] | None) -> None:
        self._n += 1
        self._jobs.put((priority, self._n, job))

    def _run(self) -> None:
        while True:
            job = self._jobs.get()[2]
            if job is None:
                return
            try:
                with contextlib.suppress(FileNotFoundError):
                    job()
            except OSError as error:
                self._report(Broken(error.strerror or str(error)))
            except Exception as error:
                log.exception("the disk cache broke")
                self._report(Broken(str(error)))

    def _read(self, path: Path, tokens: Tokens) -> None:
        began = time.perf_counter()
        data = None
        try:
            data = self._checked(path, tokens)
        finally:
            self._report(Read(path, tokens, data, time.perf_counter() - began))

    def _checked(self, path: Path, tokens: Tokens) -> StateBytes | None:
        try:
            found, data = disk_file.read(path, self._key)
            if len(found) == len(tokens) and bool((found == tokens).all()):
                return data
            raise disk_file.Damaged("it has other tokens than its name says")
        except disk_file.Foreign as error:
            log.warning("the cached prefix %s is not used: %s", path, error)
        except disk_file.Damaged as error:
            log.warning("the cached prefix %s is damaged and removed: %s", path, error)
            path.unlink(missing_ok=True)
        return None

    def _write(self, path: Path, tokens: Tokens, data: StateBytes) -> None:
        done = False
        try:
            # It may have been removed meanwhile, with all that was in it.
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk_file.write(path, self._key, tokens, data)
            done = True
        finally:
            with self._lock:
                self._unwritten -= len(data)
            self._report(Written(path, tokens, disk_file.file_bytes(self._key, len(tokens), len(data)), done))
