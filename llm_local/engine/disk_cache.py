"""The lowest tier: parked sequences in files, which outlive the process. Engine thread, but for `open`.

Which files there are, which are wanted and which go is decided here; reading and writing is `disk_worker.py`'s.
A sequence that wants an entry waits in the queue while others go on; then its bytes are in the host tier.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from llm_local.engine import disk_file
from llm_local.engine.disk_worker import Broken, DiskWorker, Read, Report, Written
from llm_local.engine.pins import Pins
from llm_local.engine.radix_tree import RadixTree, Tokens
from llm_local.engine.rates import Rates
from llm_local.engine.state_bytes import StateBytes
from llm_local.errors import StartupError

log = logging.getLogger(__name__)

WORTH_STORING = 200
"""Tokens that a sequence must have to be written: below that, computing takes about a second on a slow CPU."""

WORTH_READING = 32
"""Tokens that an entry must save to be read."""

MAX_UNWRITTEN_BYTES = 256 * 2**20
"""What may wait in memory to be written; more is dropped, as if it had not been worth it."""

READ_TIMEOUT_S = 5.0
"""After so long a sequence does not wait for its bytes any more, and is computed."""

READ_AGAIN_S = 1.0
"""How soon an entry is read again. If it did not stay in the tier above for so long, there is no room for it: without
this limit sequences that wait for different entries could push each other's out for ever."""

CLOSE_TIMEOUT_S = 20.0
"""What the writing at shutdown may take."""

STALE_S = 3600.0
"""Age of a temporary file whose writer is surely gone."""


class DiskEntry:
    """A file and what is in it."""

    def __init__(self, path: Path, tokens: Tokens, n_bytes: int) -> None:
        self.path = path
        self.tokens = tokens
        self.n_bytes = n_bytes
        self.asked_at: float | None = None
        self.came_at: float | None = None


class DiskCache:
    """Files of parked sequences, the least recently used removed first, pinned ones last.

    Args:
        folder: where they are; other files in it are left alone.
        key: says for what weights and context the bytes are, see `disk_file`.
        max_bytes: most bytes of all files under this key together.
    """

    def __init__(self, folder: Path, key: str, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.n_read = 0
        self.n_written = 0
        self.off = False
        self._key = key
        self._pins = Pins()
        self._tree: RadixTree[DiskEntry] = RadixTree()
        self._entries: OrderedDict[Path, DiskEntry] = OrderedDict()
        self._writing: dict[Path, int] = {}
        self._worker: DiskWorker | None = None
        self._close_by: float | None = None
        self._report: Callable[[Report], None] = lambda report: None

    def __len__(self) -> int:
        """Return how many entries can be read."""
        return len(self._entries)

    # -- before the engine starts -------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: Path, key: str, max_bytes: int) -> DiskCache:
        """Look through the folder, which is made if it is not there: for its owner alone, as prompts are in its files.

        Raises:
            StartupError: it cannot be read or written.
        """
        cache = cls(folder, key, max_bytes)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _probe(folder)
            paths = sorted(folder.glob(f"*{disk_file.SUFFIX}"), key=_used_at)
            for stale in folder.glob(".*.tmp"):
                if time.time() - _used_at(stale) > STALE_S:
                    stale.unlink(missing_ok=True)
        except OSError as error:
            raise StartupError(
                f"disk_cache_dir is {folder}, which cannot be read and written: {error.strerror or error}"
            ) from None
        cache._scan(paths)
        for path in cache._make_room(0):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return cache

    def _scan(self, paths: list[Path]) -> None:
        foreign, damaged, why = 0, 0, ""
        for path in paths:
            try:
                tokens, n_bytes = disk_file.read_tokens(path, self._key)
            except disk_file.Foreign:
                foreign += 1
            except disk_file.Damaged as error:
                damaged, why = damaged + 1, f"{path.name}: {error}"
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            except OSError:
                foreign += 1
            else:
                self._insert(DiskEntry(path, tokens, n_bytes))
        if foreign:
            log.warning("%d files of other models or settings in %s are left alone", foreign, self.folder)
        if damaged:
            log.warning("%d damaged files in %s are removed, one of them %s", damaged, self.folder, why)
        if paths:
            log.info("%d prefixes of %.1f MiB are in %s", len(self), self.n_bytes / 2**20, self.folder)

    def connect(self, report: Callable[[Report], None], pins: Pins) -> None:
        """Say how reports come to the engine thread (from the worker's), and what is to be kept."""
        self._report, self._pins = report, pins

    # -- engine thread ------------------------------------------------------------------------------------------

    def fetch(self, tokens: Tokens, have: int, rates: Rates, most_bytes: int) -> bool:
        """Ask for the entry with the longest common prefix if reading it beats computing; True while it is coming.

        Args:
            tokens: what is wanted.
            have: how many of them are at hand already.
            rates: decide what pays.
            most_bytes: what the tier above can hold.
        """
        walk = self._tree.walk(tokens)
        entry = walk.holder()
        if entry is None or self.off or walk.length < have + WORTH_READING:
            return False
        if entry.n_bytes - disk_file.file_bytes(self._key, len(entry.tokens), 0) > most_bytes:
            return False
        now = time.monotonic()
        if entry.asked_at is not None:
            return now - entry.asked_at < READ_TIMEOUT_S
        if entry.came_at is not None and now - entry.came_at < READ_AGAIN_S:
            return False
        if not rates.loading_pays(walk.length - have, entry.n_bytes, from_disk=True):
            return False
        entry.asked_at = now
        self._entries.move_to_end(entry.path)
        self.worker.read(entry.path, entry.tokens)
        self.worker.touch(entry.path)
        return True

    def store(self, tokens: Tokens, data: StateBytes) -> None:
        """Write a sequence, unless it is short, there already, or too much is being written."""
        if self.off or len(tokens) < WORTH_STORING:
            return
        walk = self._tree.walk(tokens)
        if walk.length == len(tokens):
            covering = walk.holder()
            assert covering is not None
            self._entries.move_to_end(covering.path)
            self.worker.touch(covering.path)
            return
        path = self.folder / disk_file.file_name(self._key, tokens)
        n_bytes = disk_file.file_bytes(self._key, len(tokens), len(data))
        waiting = self.worker.unwritten_bytes
        if path in self._writing or n_bytes > self.max_bytes or (waiting and waiting + n_bytes > MAX_UNWRITTEN_BYTES):
            return
        if sum(self._writing.values()) + n_bytes > self.max_bytes:
            # What is being written cannot make room: others would go for nothing.
            return
        for victim in self._make_room(n_bytes):
            self.worker.remove(victim)
        self._writing[path] = n_bytes
        self.n_bytes += n_bytes
        self.worker.write(path, tokens.copy(), data)

    def wants(self, tokens: Tokens) -> bool:
        """Tell whether a sequence would be written, before it is saved for that."""
        if self.off or len(tokens) < WORTH_STORING or self._tree.walk(tokens).length == len(tokens):
            return False
        return self.folder / disk_file.file_name(self._key, tokens) not in self._writing

    def take(self, report: Report, rates: Rates) -> tuple[Tokens, StateBytes] | None:
        """Take a report in; return what was read, for the tier above."""
        match report:
            case Written(path, tokens, n_bytes, done):
                self.n_bytes -= self._writing.pop(path)
                if done:
                    self.n_written += 1
                    self._supersede(tokens)
                    self._insert(DiskEntry(path, tokens, n_bytes))
            case Broken(why):
                if not self.off:
                    log.warning("the disk cache in %s is off from now on: %s", self.folder, why)
                self.off = True
            case Read(path, tokens, data, seconds):
                entry = self._entries.get(path)
                if entry is not None:
                    entry.asked_at, entry.came_at = None, time.monotonic()
                if data is not None:
                    self.n_read += 1
                    rates.read.add(len(data), seconds)
                    return tokens, data
                self._drop(path)
        return None

    def discard(self, tokens: Tokens) -> None:
        """Remove the entry of exactly these tokens, which proved to be of no use."""
        path = self.folder / disk_file.file_name(self._key, tokens)
        if self._drop(path):
            self.worker.remove(path)

    def flush(self, n_bytes: int) -> None:
        """Wait until at most `n_bytes` have still to be written (at shutdown only); it may take so long in all."""
        while self._worker is not None and self._worker.unwritten_bytes > n_bytes and self._time_left_s() > 0:
            time.sleep(0.002)

    def close(self) -> None:
        """Finish what is being written and end the worker."""
        if self._worker is not None and not self._worker.close(self._time_left_s()):
            log.warning("writing to %s takes longer than %.0f s; the rest is not kept", self.folder, CLOSE_TIMEOUT_S)

    def _time_left_s(self) -> float:
        """Return what is left of the time for writing at shutdown, which begins with the first question."""
        if self._close_by is None:
            self._close_by = time.monotonic() + CLOSE_TIMEOUT_S
        return max(self._close_by - time.monotonic(), 0.0)

    @property
    def worker(self) -> DiskWorker:
        """The worker, started when it is first needed."""
        if self._worker is None:
            self._worker = DiskWorker(self._key, self._report)
        return self._worker

    def _insert(self, entry: DiskEntry) -> None:
        self._drop(entry.path)
        self._entries[entry.path] = entry
        self._tree.insert(entry, entry.tokens)
        self.n_bytes += entry.n_bytes

    def _supersede(self, tokens: Tokens) -> None:
        """Remove what is only the beginning of these tokens."""
        for node in self._tree.walk(tokens).passed:
            for entry in list(node.ends):
                if entry.tokens not in self._pins and len(entry.tokens) < len(tokens):
                    self._drop(entry.path)
                    self.worker.remove(entry.path)

    def _make_room(self, n_bytes: int) -> list[Path]:
        """Forget entries until `n_bytes` fit; return their files, which are to be removed."""
        victims = []
        while self._entries and self.n_bytes + n_bytes > self.max_bytes:
            paths = (path for path, entry in self._entries.items() if entry.tokens not in self._pins)
            victims.append(next(paths, next(iter(self._entries))))
            self._drop(victims[-1])
        return victims

    def _drop(self, path: Path) -> bool:
        entry = self._entries.pop(path, None)
        if entry is None:
            return False
        self._tree.remove(entry)
        self.n_bytes -= entry.n_bytes
        return True


def _probe(folder: Path) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe", suffix=".tmp") as probe:
            probe.write(b"probe")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # What is there can be read, and may make room.
        log.warning("the disk of %s is full", folder)


def _used_at(path: Path) -> float:
    """Return when a file was last used, in seconds since the epoch; 0 when it is gone."""
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0
