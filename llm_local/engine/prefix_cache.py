"""Which tokens are resident in which slot, and what that costs in KV cells. Engine thread; written by the scheduler.

The native cache holds one buffer of cells, and `cells.py` mirrors it cell by cell. `parking.py` copies what goes.

    slot 0 (busy)   [ system prompt | user A ... | answer ->        reserved |
    slot 1 (busy)   [      ''       | user B ...      (shares the cells of slot 0's system prompt)
    slot 2 (idle)   [      ''       | user C ... | answer C ]       evicted when cells are short, oldest first

Invariant: cells owned by busy slots + cells promised to them <= all cells. So a running sequence never finds the
cache full within what it reserved.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from llm_local.engine.cells import CellCount, Cells
from llm_local.engine.host_cache import HostCache
from llm_local.engine.parking import WORTH_PARKING, Parking
from llm_local.engine.pins import Pins
from llm_local.engine.radix_tree import Tokens, common_prefix
from llm_local.engine.slots import Memory, Slot, SlotIndex

LONG_PROMPT = 256
"""Tokens to be computed from which on what is idle makes way before: in the holes between its cells a prompt would lie
scattered, and attention on a CPU, which skips what a whole group of cells has for others, would skip nothing."""

LOOK_EVERY = 4
"""Steps between looks for idle sequences to move out, which are not free."""


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
        self.slots = [Slot(number, window) for number in range(n_slots)]
        self.cells = Cells(n_cells)
        self.pins = Pins()
        self.parking = Parking(memory, self.cells, self.pins, host)
        self._index = SlotIndex()
        self._memory = memory
        self._park_after = park_after if host is not None else None
        self._step = 0
        self._clock = 0

    def match(self, tokens: Tokens) -> tuple[Slot | None, int]:
        """Return the slot with the longest common prefix, and its length; idle slots win ties."""
        source, common = self._index.match(tokens)
        if source is None or self._memory.holds(source.id, common):
            return source, common
        # A sliding window went over it; another slot may have as much, or a bit less.
        lengths = ((slot, common_prefix(slot.tokens[: slot.length], tokens)) for slot in self.slots)
        whole = [(slot, n) for slot, n in lengths if n and self._memory.holds(slot.id, n)]
        return max(whole, key=lambda found: (found[1], not found[0].busy), default=(None, 0))

    def cell_count(self) -> CellCount:
        """Return what the cells are for. Any thread: between two steps of the engine, numbers may be of either."""
        return self.cells.count(self.slots)

    def pin(self, tokens: Tokens) -> None:
        """Let a prefix be evicted last, from now on and wherever it is; it is kept on the disk, too."""
        self.pins.add(tokens)

    def fetching(self, tokens: Tokens) -> bool:
        """Whether a prefix of these tokens is being read from the disk, which is worth waiting for."""
        return self.parking.has_files and self.parking.fetch(tokens, self.match(tokens)[1])

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
        if self._park_after is not None and found is not None and len(tokens) - found[1] >= LONG_PROMPT:
            for slot in self.slots:
                if self._is_parkable(slot):
                    self._move_out(slot)
        return found

    def has_room(self, tokens: Tokens, shareable: int, reserve: int, leaving: Container[int]) -> bool:
        """Whether there are cells for a sequence (see `acquire`) once the slots of these ids are let go."""
        source, common = self.match(tokens[:shareable])
        staying = [slot for slot in self.slots if slot.id not in leaving]
        return self._committed(source, common, staying) + reserve - common <= self.cells.total

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
        if self._park_after is None or not self.cells.are_scattered or any(slot.busy for slot in self.slots):
            return
        # The longest first: what others share with them is not worth a copy before they are gone.
        for slot in sorted(self.slots, key=lambda slot: -slot.length):
            if slot.length < WORTH_PARKING:
                self.trim(slot, 0)
            elif self.parking.is_worth_it(slot) and self.parking.is_kept(slot):
                self._move_out(slot)
        self.cells.peak = 0

    def _restore(self, tokens: Tokens, reserve: int) -> tuple[Slot, int] | None:
        """Bring a parked sequence back if it has a longer prefix than any that is resident."""
        found = None if self.parking.is_empty else self.parking.find(tokens, self.match(tokens)[1])
        if found is None:
            return None
        parked, common = found
        n = len(parked.tokens)
        if self._committed(None, 0) + max(reserve, n) > self.cells.total:
            return None
        target = self._target(None, 0)
        self._evict(target)
        self.make_room(n)
        if not self.parking.load(target, parked, common):
            self.drop(target)
            return None
        # The rest was needed to load it, and may be longer than the window: it is of an earlier run with a larger one.
        self._memory.trim(target.id, common)
        self.extend(target, parked.tokens[:common])
        self._occupy(target, common, reserve)
        return target, common

    def next_step(self) -> None:
        """Count a step, and move one sequence out that has been idle for long.

        The few cells that one has beside what it shares are given up where they may lie far behind in the cells.
        """
        self._step += 1
        if self._park_after is None or self._step % LOOK_EVERY:
            return
        for slot in self.slots:
            if slot.busy or self._step - slot.idle_since < self._park_after:
                continue
            if self._is_parkable(slot):
                self._move_out(slot)
                return
            if self.cells.are_scattered and not slot.is_pin and (own := self.cells.n_own(slot)) < WORTH_PARKING:
                self.trim(slot, slot.length - own)
                slot.pin = 0  # A pinned prefix that is left has a slot of its own.

    def _is_parkable(self, slot: Slot) -> bool:
        return not slot.busy and slot.length > 0 and not slot.is_pin and self.parking.is_better_off(slot)

    def _move_out(self, slot: Slot) -> None:
        """Empty a slot once what it holds is in the host's memory."""
        if self.parking.park(slot):
            self.trim(slot, 0)

    def _evict(self, slot: Slot) -> None:
        """Empty a slot; what is worth it goes to the host's memory."""
        self.parking.park(slot)
        self.trim(slot, 0)

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
                raise RuntimeError(f"the KV accounting is wrong: {n} cells promised, {self.cells.n_free} free")
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
        elif (
            not others
            or any(self._has_pin(other) for other in self._index.ends_at(prefix))
            or not self._memory.holds(slot.id, slot.pin)
        ):
            return
        else:
            target = min(others, key=lambda other: (other.length > 0, other.used_at))
            self._evict(target)
            self._share(slot, target, slot.pin)
            self._index.update(target)
            target.pin, target.used_at, target.idle_since = slot.pin, self._clock, self._step
        self.parking.store(target)

    def _has_pin(self, slot: Slot) -> bool:
        return slot.is_pin and self._memory.holds(slot.id, slot.length)

    def close(self, *, keep: bool) -> None:
        """Write what is worth it to the disk, if the native contents are to be trusted, and stop using it."""
        for slot in self.slots if keep else ():
            self.parking.store(slot, wait=True)
        self.parking.close(keep=keep)

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

    def _committed(self, source: Slot | None, common: int, slots: Iterable[Slot] | None = None) -> int:
        """Cells that cannot be had: owned by busy ones of the slots (or by the prefix to share) or promised to them."""
        owned, promised = self.cells.of_busy(self.slots if slots is None else slots)
        if source is not None:
            owned[source.cells[:common]] = True
        return int(owned.sum()) + promised
