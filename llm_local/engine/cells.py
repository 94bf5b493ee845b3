"""The cells of the KV cache and how many slots own each. Engine thread; written by `PrefixCache`.

A cell belongs to every slot that shares it, as in the native cache; one without owner is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_local.engine.radix_tree import Tokens
from llm_local.engine.slots import Slot

SCATTERED = 512
"""Cells by which more than twice those in use must have been in use for them to be moved together."""


@dataclass(frozen=True, slots=True)
class CellCount:
    """KV cells by what they are for. All = used + idle + free; what is promised comes out of idle and free ones.

    Attributes:
        used: owned by running sequences.
        promised: that running sequences may still take.
        idle: kept of earlier sequences, and given up when cells are short.
    """

    total: int
    used: int
    promised: int
    idle: int


class Cells:
    """Counts owners.

    Attributes:
        total: cells there are.
        n_free: cells without owner.
        peak: most cells that were owned at a time since it was last set.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.n_free = total
        self.peak = 0
        self._owners = np.zeros(total, np.int32)
        self._free: Tokens = np.arange(total, dtype=np.int32)

    @property
    def n_used(self) -> int:
        """Cells with an owner."""
        return self.total - self.n_free

    @property
    def are_scattered(self) -> bool:
        """Whether some of those in use may lie far behind, because many more were in use before."""
        return self.peak > 2 * self.n_used + SCATTERED

    def take(self, n: int) -> Tokens:
        """Return `n` free cells, which have one owner now."""
        cells = self._free[self.n_free - n : self.n_free]
        self.n_free -= n
        self._owners[cells] = 1
        self.peak = max(self.peak, self.n_used)
        return cells

    def share(self, cells: Tokens) -> None:
        """Give cells one owner more."""
        self._owners[cells] += 1

    def give_back(self, cells: Tokens) -> None:
        """Take an owner away from each; those that have none left are free."""
        self._owners[cells] -= 1
        freed = cells[self._owners[cells] == 0]
        self._free[self.n_free : self.n_free + len(freed)] = freed
        self.n_free += len(freed)

    def n_own(self, slot: Slot) -> int:
        """Return how many cells no other slot shares."""
        return int((self._owners[slot.cells[: slot.length]] == 1).sum())

    def of_busy(self, slots: Iterable[Slot]) -> tuple[npt.NDArray[np.bool_], int]:
        """Return which cells [total] busy slots own, and how many more they were promised."""
        owned = np.zeros(self.total, np.bool_)
        promised = 0
        for slot in slots:
            if slot.busy:
                owned[slot.cells[: slot.length]] = True
                promised += slot.reserved - slot.length
        return owned, promised

    def count(self, slots: Iterable[Slot]) -> CellCount:
        """Return what the cells are for. Any thread: between two steps of the engine, numbers may be of either."""
        owned, promised = self.of_busy(slots)
        used = int(owned.sum())
        return CellCount(self.total, used, promised, max(self.n_used - used, 0))
