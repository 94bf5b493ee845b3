"""KV on its way from slots to the host's memory and files, and back: what is worth a copy. Engine thread.

Slots are left as they are here; `PrefixCache`, which asks, empties and fills them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from llm_local.engine.cells import Cells
from llm_local.engine.disk_worker import Report
from llm_local.engine.host_cache import HostCache, Parked
from llm_local.engine.pins import Pins
from llm_local.engine.radix_tree import Tokens
from llm_local.engine.rates import Rates
from llm_local.engine.slots import Memory, Slot
from llm_local.engine.state_bytes import StateBytes

WORTH_PARKING = 32
"""Tokens that a sequence must have to itself, or that a parked one must save, to be moved at all; beyond that it is
decided by the measured rates (`rates.py`)."""


@dataclass(frozen=True, slots=True)
class TierBytes:
    """Bytes of KV that each tier holds now: cells in use, the host's memory, files."""

    resident: int
    host: int
    disk: int


class Parking:
    """The copies between the slots and the tiers below them.

    Args:
        memory: the native side that is read and written.
        cells: what the slots own.
        pins: what stays parked when it is loaded, too.
        host: where sequences go that are not in use; None for nowhere.

    Attributes:
        n_parked, n_restored: sequences that went there and came back.
    """

    def __init__(self, memory: Memory, cells: Cells, pins: Pins, host: HostCache | None) -> None:
        self.n_parked = 0
        self.n_restored = 0
        self.rates = Rates()
        self._memory = memory
        self._cells = cells
        self._pins = pins
        self._host = host

    def kv_bytes(self) -> TierBytes:
        """Return what each tier holds."""
        host, disk = self._host, self._host.disk if self._host is not None else None
        return TierBytes(
            resident=self._cells.n_used * self._memory.cell_bytes,
            host=host.n_bytes if host is not None else 0,
            disk=disk.n_bytes if disk is not None else 0,
        )

    def is_worth_it(self, slot: Slot) -> bool:
        """Whether the slot has cells of its own, enough to be worth moving: what several share, stays."""
        own = self._cells.n_own(slot)
        return own >= WORTH_PARKING and self.rates.parking_pays(own, self._n_bytes(slot))

    def is_kept(self, slot: Slot) -> bool:
        """Whether what the slot holds would be in the host's memory then, and nothing lost for it that may be missed.

        Where there is no place for it, a conversation is better off in the cells as long as nobody needs them.
        """
        if self._host is None or not self._memory.holds(slot.id, 1):
            return False
        return self._host.has_place(self._n_bytes(slot), slot.length) or self._host.refresh(slot.tokens[: slot.length])

    def is_better_off(self, slot: Slot) -> bool:
        """Whether an idle slot whose cells nobody needs is to move to the host's memory all the same.

        All of it is copied, and comes back into cells of its own, for which there may be no room then: not what it
        shares for the most part.
        """
        if 2 * self._cells.n_own(slot) < slot.length:
            return False
        return self.is_worth_it(slot) and self.is_kept(slot)

    def park(self, slot: Slot) -> bool:
        """Copy what a slot holds to the host's memory, if it is worth it, can stay there, and is not there already.

        Returns:
            Whether it is there.
        """
        if self._host is None or not slot.length or self._n_bytes(slot) >= self._host.max_bytes:
            return False
        if not self.is_worth_it(slot):
            return False
        tokens = slot.tokens[: slot.length]
        if self._host.refresh(tokens):
            return True
        data = self._save(slot)
        if not data or not self._host.put(tokens, data):
            return False
        self.n_parked += 1
        return True

    @property
    def is_empty(self) -> bool:
        """Whether nothing is parked."""
        return self._host is None or not len(self._host)

    def find(self, tokens: Tokens, have: int) -> tuple[Parked, int] | None:
        """Return what has a prefix so much longer than the `have` tokens that are resident that loading it pays.

        Returns:
            The parked sequence and the length of that prefix.
        """
        assert self._host is not None
        parked, common = self._host.match(tokens)
        saves = common - have
        if parked is None or saves < WORTH_PARKING or not self.rates.loading_pays(saves, len(parked.data)):
            return None
        # Others may be parked before it is loaded, and it is not to go for them.
        self._host.used(parked)
        return parked, common

    def load(self, slot: Slot, parked: Parked, common: int) -> bool:
        """Copy a parked sequence to an empty slot; one that goes on there, as all of it is `common`, leaves its place.

        Returns:
            Whether it could be loaded; if not, it is parked no more, and what the slot holds is not known.
        """
        assert self._host is not None
        began = time.perf_counter()
        if not self._memory.load(slot.id, parked.data):
            self._host.reject(parked)
            return False
        self.rates.loaded.add(len(parked.data), time.perf_counter() - began)
        if common == len(parked.tokens) and parked.tokens not in self._pins:
            self._host.remove(parked)
        self.n_restored += 1
        return True

    @property
    def has_files(self) -> bool:
        """Whether anything could be fetched."""
        return self._host is not None and self._host.has_files

    def fetch(self, tokens: Tokens, have: int) -> bool:
        """Ask the disk for a prefix that is longer than the `have` tokens that are resident; True while it comes."""
        assert self._host is not None
        return self._host.fetch(tokens, have, self.rates)

    def take(self, report: Report) -> None:
        """Take in what the disk did."""
        assert self._host is not None
        self._host.take(report, self.rates)

    def store(self, slot: Slot, *, wait: bool = False) -> None:
        """Write what a slot holds to the disk, if it should be there; with `wait`, when few bytes wait for that."""
        host, tokens = self._host, slot.tokens[: slot.length]
        if host is not None and host.wants_stored(tokens, self._n_bytes(slot)) and (data := self._save(slot)):
            host.store(tokens, data, wait=wait)

    def close(self, *, keep: bool) -> None:
        """Write what is parked to the disk, if it is to be kept, and stop using it."""
        if self._host is not None:
            self._host.close(keep=keep)

    def _n_bytes(self, slot: Slot) -> int:
        return slot.length * self._memory.cell_bytes

    def _save(self, slot: Slot) -> StateBytes:
        began = time.perf_counter()
        data = self._memory.save(slot.id)
        if data:
            self.rates.saved.add(len(data), time.perf_counter() - began)
        return data
