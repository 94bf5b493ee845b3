"""Which tokens are resident in which slot, and what that costs in KV cells. Engine thread; written by the scheduler.

The native cache holds one buffer of cells, and `cells.py` mirrors it cell by cell.

    slot 0 (busy)   [ system prompt | user A ... | answer ->        reserved |
    slot 1 (busy)   [      ''       | user B ...      (shares the cells of slot 0's system prompt)
    slot 2 (idle)   [      ''       | user C ... | answer C ]       evicted when cells are short, oldest first

Invariant: cells owned by busy slots + cells promised to them <= all cells. So a running sequence never finds the
cache full within what it reserved.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from llm_local.engine.cells import CellCount, Cells
from llm_local.engine.disk_worker import Report
from llm_local.engine.host_cache import HostCache
from llm_local.engine.pins import Pins
from llm_local.engine.radix_tree import Tokens
from llm_local.engine.rates import Rates
from llm_local.engine.slots import Memory, Slot, SlotIndex

WORTH_PARKING = 32
"""Tokens that a sequence must have to itself, or that a parked one must save, to be moved at all; beyond that it is
decided by the measured rates (`rates.py`)."""

SCATTERED = 512
"""Cells by which more than twice those in use must have been in use for them to be moved together."""

LONG_PROMPT = 256
"""Tokens to be computed from which on what is idle makes way before: a prompt that is read into the holes between its
cells lies scattered, and attention on a CPU, which skips what a whole group of cells has for others, skips nothing."""

LOOK_EVERY = 4
"""Steps between looks for idle sequences to move out, which are not free."""


@dataclass(frozen=True, slots=True)
class TierBytes:
    """Bytes of KV that each tier holds now: cells in use, the host's memory, files."""

    resident: int
    host: int
    disk: int


class PrefixCache:
    """Slots, the cells they own, and the rules for reuse, sharing and eviction.

    Args:
        memory: the native side that is kept in step.
        n_slots: how many sequences can be resident.
        n_cells: KV cells in all.
        window: most tokens of one sequence.
        host: where sequences go that are not in use.
        park_after: steps after which an idle sequence goes there although nobody needs its cells; None for never.
    """

    def __init__(
        self,
        memory: Memory,
        n_slots: int,
        n_cells: int,
        window: int,
        host: HostCache | None = None,
        park_after: int | None = None,
    ) -> None:
        self._host = host
        self._park_after = park_after
        self._step = 0
        self.n_parked = 0
        self.n_restored = 0
        self.rates = Rates()
        self.pins = Pins()
        self._index = SlotIndex()
        self._memory = memory
        self.slots = [Slot(number, window) for number in range(n_slots)]
        self.cells = Cells(n_cells)
        self._clock = 0

    def match(self, tokens: Tokens) -> tuple[Slot | None, int]:
        """Return the slot with the longest common prefix, and its length; idle slots win ties."""
        return self._index.match(tokens)

    def kv_bytes(self) -> TierBytes:
        """Return what each tier holds."""
        host, disk = self._host, self._host.disk if self._host is not None else None
        return TierBytes(
            resident=self.cells.n_used * self._memory.cell_bytes,
            host=host.n_bytes if host is not None else 0,
            disk=disk.n_bytes if disk is not None else 0,
        )

    def cell_count(self) -> CellCount:
        """Return what the cells are for. Any thread: between two steps of the engine, numbers may be of either."""
        return self.cells.count(self.slots)

    def pin(self, tokens: Tokens) -> None:
        """Let a prefix be evicted last, from now on and wherever it is; it is kept on the disk, too."""
        self.pins.add(tokens)

    def fetching(self, tokens: Tokens) -> bool:
        """Whether a prefix of these tokens is being read from the disk, which is worth waiting for."""
        if self._host is None or not self._host.has_files:
            return False
        return self._host.fetch(tokens, self.match(tokens)[1], self.rates)

    def take(self, report: Report) -> None:
        """Take in what the disk did."""
        assert self._host is not None
        self._host.take(report, self.rates)

    def acquire(self, tokens: Tokens, shareable: int, reserve: int) -> tuple[Slot, int] | None:
        """Take an idle slot for a sequence and fill it with the longest prefix that is resident anywhere.

        Args:
            tokens: all tokens of the sequence so far.
            shareable: most tokens that may come from the cache.
            reserve: positions that the sequence is promised, `len(tokens)` included.

        Returns:
            The slot and the number of tokens that need not be computed; None when the promise cannot be made now.
        """
        self._gather()
        found = self._restore(tokens[:shareable], reserve) or self._reuse(tokens, shareable, reserve)
        if self._parks and found is not None and len(tokens) - found[1] >= LONG_PROMPT:
            for slot in self.slots:
                if self._is_parkable(slot):
                    self._evict(slot)
        return found

    def _reuse(self, tokens: Tokens, shareable: int, reserve: int) -> tuple[Slot, int] | None:
        """Take an idle slot with what is resident; see `acquire`."""
        source, common = self.match(tokens[:shareable])
        if self._committed(source, common) + reserve - common > self.cells.total:
            return None
        target = self._target(source, common)
        if target is not source:
            self._evict(target)
            if source is not None:
                self._share(source, target, common)
        self._occupy(target, common, reserve)
        return target, common

    def _occupy(self, target: Slot, common: int, reserve: int) -> None:
        self.trim(target, common)
        self._index.update(target)
        target.busy, target.reserved, target.pin = True, reserve, 0

    def _gather(self) -> None:
        """Move everything out when nobody is at work and what is resident may lie far behind in the cells.

        llama.cpp's attention on a CPU walks over every cell up to the last one in use. A prefix that many share stays
        where it was computed, perhaps behind a long prompt that is gone; it comes back by a copy, at the beginning.
        """
        scattered = self.cells.peak > 2 * self.cells.n_used + SCATTERED
        if not self._parks or not scattered or any(slot.busy for slot in self.slots):
            return
        for slot in self.slots:
            self._evict(slot)
        self.cells.peak = 0

    def _restore(self, tokens: Tokens, reserve: int) -> tuple[Slot, int] | None:
        """Bring a parked sequence back if it has a longer prefix than any that is resident."""
        if self._host is None or not len(self._host):
            return None
        parked, common = self._host.match(tokens)
        saves = common - self.match(tokens)[1]
        if parked is None or saves < WORTH_PARKING or not self.rates.loading_pays(saves, len(parked.data)):
            return None
        n = len(parked.tokens)
        if self._committed(None, 0) + max(reserve, n) > self.cells.total:
            return None
        target = self._target(None, 0)
        self._evict(target)
        self.make_room(n)
        began = time.perf_counter()
        if not self._memory.load(target.id, parked.data):
            self._host.reject(parked)
            self.drop(target)
            return None
        self.rates.loaded.add(len(parked.data), time.perf_counter() - began)
        if common == n and parked.tokens not in self.pins:
            self._host.remove(parked)
        # The rest was needed to load it, and may be longer than the window: it is of an earlier run with a larger one.
        self._memory.trim(target.id, common)
        self.extend(target, parked.tokens[:common])
        self._occupy(target, common, reserve)
        self.n_restored += 1
        return target, common

    def next_step(self) -> None:
        """Count a step, and move one sequence out that has been idle for long."""
        self._step += 1
        if self._park_after is None or not self._parks or self._step % LOOK_EVERY:
            return
        for slot in self.slots:
            if self._step - slot.idle_since >= self._park_after and self._is_parkable(slot):
                self._evict(slot)
                return

    @property
    def _parks(self) -> bool:
        """Whether idle sequences go to the host's memory although nobody needs their cells."""
        return self._host is not None and self._park_after is not None

    def _is_parkable(self, slot: Slot) -> bool:
        return not slot.busy and slot.length > 0 and not slot.is_pin and self._worth_parking(slot)

    def _worth_parking(self, slot: Slot) -> bool:
        """Whether the slot has cells of its own, enough to be worth moving: what several share, stays."""
        own = self.cells.n_own(slot)
        return own >= WORTH_PARKING and self.rates.parking_pays(own, slot.length * self._memory.cell_bytes)

    def _evict(self, slot: Slot) -> None:
        """Empty a slot; what is worth it goes to the host's memory."""
        if self._host is not None and slot.length and self._worth_parking(slot):
            tokens = slot.tokens[: slot.length]
            if not self._host.refresh(tokens) and (data := self._save(slot)):
                self._host.put(tokens, data)
                self.n_parked += 1
        self.trim(slot, 0)

    def _save(self, slot: Slot) -> bytearray:
        began = time.perf_counter()
        data = self._memory.save(slot.id)
        if data:
            self.rates.saved.add(len(data), time.perf_counter() - began)
        return data

    def grow(self, slot: Slot, reserve: int) -> bool:
        """Promise the slot more positions; False when that needs cells that others were promised."""
        if self._committed(None, 0) + reserve - slot.reserved > self.cells.total:
            return False
        slot.reserved = reserve
        return True

    def extend(self, slot: Slot, tokens: Tokens) -> None:
        """Record that the slot's next tokens were computed (they were within its reserve)."""
        n, start = len(tokens), slot.length
        slot.cells[start : start + n] = self.cells.take(n)
        slot.tokens[start : start + n] = tokens
        slot.length += n

    def make_room(self, n: int) -> None:
        """Evict idle slots, least recently used first, until `n` cells are free."""
        while self.cells.n_free < n:
            idle = [slot for slot in self.slots if not slot.busy and slot.length]
            if not idle:
                raise RuntimeError(
                    f"the KV accounting is wrong: {n} cells promised, {self.cells.n_free} free, none idle"
                )
            self._evict(min(idle, key=lambda slot: (slot.is_pin, slot.used_at)))

    def evict_idle(self) -> bool:
        """Evict all idle slots; False when none holds anything."""
        idle = [slot for slot in self.slots if not slot.busy and slot.length]
        for slot in idle:
            self.trim(slot, 0)
        return bool(idle)

    def release(self, slot: Slot) -> None:
        """Let the slot go; what it holds stays resident until the cells are needed."""
        self._clock += 1
        slot.busy, slot.reserved, slot.used_at, slot.idle_since = False, 0, self._clock, self._step
        if slot.length:
            self._index.update(slot)
        else:
            self._index.trim(slot, 0)
        slot.pin = self.pins.longest(slot.tokens[: slot.length])
        if slot.pin:
            self._keep_pin(slot)

    def _keep_pin(self, slot: Slot) -> None:
        """See to it that the pinned prefix of an idle slot has a slot of its own; a new one is written to the disk."""
        prefix = slot.tokens[: slot.pin]
        others = [other for other in self.slots if not other.busy and other is not slot and not other.is_pin]
        if slot.is_pin:
            target = slot
        elif not others or any(other.is_pin for other in self._index.ends_at(prefix)):
            return
        else:
            target = min(others, key=lambda other: (other.length > 0, other.used_at))
            self._evict(target)
            self._share(slot, target, slot.pin)
            self._index.update(target)
            target.pin, target.used_at, target.idle_since = slot.pin, self._clock, self._step
        if self._host is not None and self._host.wants_stored(prefix) and (data := self._save(target)):
            self._host.store(prefix, data)

    def close(self, *, keep: bool) -> None:
        """Write what is worth it to the disk, if the native contents are to be trusted, and stop using it."""
        if self._host is None:
            return
        for slot in self.slots if keep else ():
            tokens = slot.tokens[: slot.length]
            if self._host.wants_stored(tokens) and (data := self._save(slot)):
                self._host.store(tokens, data, wait=True)
        self._host.close(keep=keep)

    def trim(self, slot: Slot, length: int) -> None:
        """Forget what the slot holds from `length` on."""
        if length >= slot.length:
            return
        self.cells.give_back(slot.cells[length : slot.length])
        slot.length = length
        self._index.trim(slot, length)
        self._memory.trim(slot.id, length)

    def drop(self, slot: Slot) -> None:
        """Empty a slot whose native contents are not known, whatever the accounting says of them."""
        self.trim(slot, 0)
        self._memory.trim(slot.id, 0)

    def _share(self, source: Slot, target: Slot, length: int) -> None:
        target.tokens[:length] = source.tokens[:length]
        target.cells[:length] = source.cells[:length]
        target.length = length
        self.cells.share(source.cells[:length])
        self._memory.share(source.id, target.id, length)

    def _target(self, source: Slot | None, common: int) -> Slot:
        """Choose the slot to write to: an idle one that is continued whole, else the least recently used.

        Sharing into another slot costs nothing and keeps the rest of the source for whoever comes back to it. A
        pinned prefix keeps its slot.
        """
        if source is not None and not source.busy and source.length == common and not source.is_pin:
            return source
        idle = (slot for slot in self.slots if not slot.busy)
        return min(idle, key=lambda slot: (slot.length > 0, slot.is_pin, slot.used_at))

    def _committed(self, source: Slot | None, common: int) -> int:
        """Cells that cannot be had: owned by busy slots (or by the prefix to share) or promised to them."""
        owned, promised = self.cells.of_busy(self.slots)
        if source is not None:
            owned[source.cells[:common]] = True
        return int(owned.sum()) + promised
