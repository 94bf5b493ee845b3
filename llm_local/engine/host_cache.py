"""KV of idle sequences in ordinary memory, from where it comes back faster than it is computed. Engine thread.

On a CPU every resident cell costs time in every step, masked or not (Qwen2.5-0.5B: 5 % for 1,000 cells), so what is
not in use moves here; on a GPU only what has to make room for others does. What has to go from here goes on to the
disk, where there is one, and comes back through here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from llm_local.engine.disk_cache import MAX_UNWRITTEN_BYTES, DiskCache
from llm_local.engine.disk_worker import Report
from llm_local.engine.pins import Pins
from llm_local.engine.radix_tree import RadixTree, Tokens
from llm_local.engine.rates import Rates
from llm_local.engine.state_bytes import StateBytes

SMALL, MOST_SMALL_BYTES = 4, 24 * 2**20
"""Up to this part of the memory, and so many bytes, a sequence is small."""

SHORT = 256
"""Sequences of fewer tokens are chats that cost little to compute again, and there is no end of them."""

DONORS = 16
"""Of sequences that begin alike so many are looked at for the smallest, which is to be loaded."""

MISSED_S = 180.0
"""A larger one that was not used for so long is not missed: who answers an interviewer thinks for a minute or two."""


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """A sequence's tokens, the native bytes of their KV, and whether it counts as a chat (a pinned one does not)."""

    tokens: Tokens
    data: StateBytes
    is_short: bool


class HostCache:
    """Parked sequences, the least recently used dropped first, pinned ones last.

    Args:
        max_bytes: most bytes of all together.
        disk: where they go when they are dropped.
        max_short_bytes: most bytes of those with fewer than `SHORT` tokens; None for the same.
    """

    def __init__(self, max_bytes: int, disk: DiskCache | None = None, max_short_bytes: int | None = None) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._max_short_bytes = max_bytes if max_short_bytes is None else max_short_bytes
        self._short_bytes = 0
        self.disk = disk
        self._pins = Pins()
        self._tree: RadixTree[Parked] = RadixTree()
        self._parked: OrderedDict[Parked, float] = OrderedDict()
        """With the time of their last use, by `time.monotonic`; the oldest first."""

    def __len__(self) -> int:
        """Return how many sequences are parked."""
        return len(self._parked)

    def connect(self, report: Callable[[Report], None], pins: Pins) -> None:
        """Say how the disk's reports come to the engine thread, and what is to be kept."""
        self._pins = pins
        if self.disk is not None:
            self.disk.connect(report, pins)

    def put(self, tokens: Tokens, data: StateBytes) -> bool:
        """Take a sequence in, if it is not too large; those whose tokens it begins with are superseded.

        Returns:
            Whether it is there.
        """
        if self.refresh(tokens):
            return True
        if len(data) > self.max_bytes:
            return False
        for node in self._tree.walk(tokens).passed:
            for shorter in list(node.ends):
                if shorter.tokens not in self._pins:
                    self.remove(shorter)
        parked = Parked(tokens.copy(), data, len(tokens) < SHORT and tokens not in self._pins)
        self._parked[parked] = time.monotonic()
        self._tree.insert(parked, parked.tokens)
        self._count(parked, 1)
        while self._short_bytes > self._max_short_bytes and self._drop_oldest(parked, short=True):
            pass
        while self.n_bytes > self.max_bytes and self._drop_oldest(parked):
            pass
        return True

    def has_place(self, n_bytes: int, n_tokens: int) -> bool:
        """Whether so much can be taken in, and of others only what nobody will miss has to go.

        That is what was not used for a while, and what is as small as chats that are over: a small one may push out
        small ones. (Headers come to the bytes, so that what just fits does not.)
        """
        small, now = min(self.max_bytes // SMALL, MOST_SMALL_BYTES), time.monotonic()
        excess = self.n_bytes + n_bytes - self.max_bytes
        capped = n_tokens < SHORT and self._max_short_bytes < self.max_bytes
        short_excess = self._short_bytes + n_bytes - self._max_short_bytes
        for parked in self._parked if capped else ():
            if short_excess <= 0:
                break
            # They go for it in any case.
            if parked.is_short:
                short_excess -= len(parked.data)
                excess -= len(parked.data)
        for parked, used_at in self._parked.items():
            if excess < 0:
                break
            if parked.tokens in self._pins:
                continue
            if (n_bytes > small or len(parked.data) > small) and now - used_at < MISSED_S:
                return False
            excess -= len(parked.data)
        return excess < 0

    def refresh(self, tokens: Tokens) -> bool:
        """Note that these tokens were used; False when no sequence that is parked has all of them.

        A pinned prefix has to be there by itself: who goes on after it may be dropped before it.
        """
        walk = self._tree.walk(tokens)
        if walk.length < len(tokens):
            return False
        if tokens in self._pins:
            parked = next((one for one in walk.node.ends if len(one.tokens) == len(tokens)), None)
        else:
            parked = walk.holder()
        if parked is None:
            return False
        self.used(parked)
        return True

    def match(self, tokens: Tokens) -> tuple[Parked | None, int]:
        """Return a sequence with the longest common prefix, of several a small one, and the prefix's length."""
        walk = self._tree.walk(tokens)
        holders = islice(walk.node.holders(), DONORS) if walk.length else ()
        return min(holders, key=lambda parked: len(parked.data), default=None), walk.length

    def used(self, parked: Parked) -> None:
        """Note that a sequence was used, if it is still there."""
        if parked in self._parked:
            self._parked[parked] = time.monotonic()
            self._parked.move_to_end(parked)

    def remove(self, parked: Parked) -> None:
        """Drop a sequence, if it is still there."""
        if parked in self._parked:
            del self._parked[parked]
            self._tree.remove(parked)
            self._count(parked, -1)

    def reject(self, parked: Parked) -> None:
        """Drop a sequence that could not be loaded, from the disk, too."""
        self.remove(parked)
        if self.disk is not None:
            self.disk.discard(parked.tokens)

    @property
    def has_files(self) -> bool:
        """Whether anything could be fetched."""
        return self.disk is not None and len(self.disk) > 0

    def fetch(self, tokens: Tokens, have: int, rates: Rates) -> bool:
        """Ask the disk for a prefix that is longer than the `have` tokens that are resident; True while it comes."""
        assert self.disk is not None
        return self.disk.fetch(tokens, max(have, self._tree.walk(tokens).length), rates, self.max_bytes)

    def take(self, report: Report, rates: Rates) -> None:
        """Take in what the disk did."""
        assert self.disk is not None
        arrived = self.disk.take(report, rates)
        if arrived is not None:
            self.put(*arrived)

    def wants_stored(self, tokens: Tokens, n_bytes: int) -> bool:
        """Whether there is a disk on which these tokens are not, and should be: it is from here that they come back."""
        return self.disk is not None and n_bytes < self.max_bytes and self.disk.wants(tokens)

    def store(self, tokens: Tokens, data: StateBytes, *, wait: bool = False) -> None:
        """Write a sequence to the disk; with `wait`, when not too many bytes wait for that."""
        if self.disk is not None:
            if wait:
                self.disk.flush(max(MAX_UNWRITTEN_BYTES // 2 - len(data), 0))
            self.disk.store(tokens, data)

    def close(self, *, keep: bool) -> None:
        """Write what is parked to the disk, if it is to be kept, and end the disk's worker."""
        if self.disk is None:
            return
        for parked in self._parked if keep else ():
            self.store(parked.tokens, parked.data, wait=True)
        self.disk.close()

    def _count(self, parked: Parked, sign: int) -> None:
        self.n_bytes += sign * len(parked.data)
        if parked.is_short:
            self._short_bytes += sign * len(parked.data)

    def _drop_oldest(self, but: Parked, *, short: bool = False) -> bool:
        """Drop the one (or the short one) that is to go first, which is never the one that just came.

        Returns:
            Whether there was one.
        """
        others = [one for one in self._parked if one is not but and (one.is_short or not short)]
        parked = next((one for one in others if one.tokens not in self._pins), next(iter(others), None))
        if parked is None:
            return False
        self.remove(parked)
        if self.disk is not None:
            self.disk.store(parked.tokens, parked.data)
        return True
