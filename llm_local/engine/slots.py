"""Native sequences and an index of what is resident in them. Engine thread; written by `PrefixCache`."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from llm_local.engine.radix_tree import RadixTree, Tokens, common_prefix
from llm_local.engine.state_bytes import StateBytes


class Memory(Protocol):
    """What the cache needs of the backend."""

    @property
    def cell_bytes(self) -> int:
        """Bytes of one cell's KV."""
        ...

    def trim(self, slot: int, length: int) -> None:
        """Forget what the slot holds from `length` on."""
        ...

    def share(self, source: int, target: int, length: int) -> None:
        """Let `target` own the first `length` cells of `source`, too."""
        ...

    def holds(self, slot: int, length: int) -> bool:
        """Tell whether the slot still has all that a token behind its first `length` looks at."""
        ...

    def save(self, slot: int) -> StateBytes:
        """Return what the slot holds; empty when that is not possible."""
        ...

    def load(self, slot: int, data: StateBytes) -> bool:
        """Fill an empty slot with what was saved; False, and the slot's contents unknown, when it does not fit."""
        ...


class Slot:
    """One native sequence: `tokens[:length]` are resident in `cells[:length]`.

    Attributes:
        pin: how many leading tokens of an idle slot are a pinned prefix, 0 for none.
    """

    def __init__(self, number: int, window: int) -> None:
        self.id = number
        self.tokens: Tokens = np.zeros(window, np.int32)
        self.cells: Tokens = np.zeros(window, np.int32)
        self.length = 0
        self.reserved = 0
        self.busy = False
        self.used_at = 0
        self.idle_since = 0
        self.pin = 0

    @property
    def is_pin(self) -> bool:
        """Whether the slot holds a pinned prefix and nothing else."""
        return self.length == self.pin > 0


class SlotIndex:
    """Finds the slot with the longest common prefix.

    A busy slot is in the tree up to where it was when it was taken, and what it got since is compared when a look-up
    comes to the end of that. So a token more costs nothing here, and an answer is indexed once, when it is over.
    """

    def __init__(self) -> None:
        self._tree: RadixTree[Slot] = RadixTree()

    def update(self, slot: Slot) -> None:
        """Index what the slot holds now."""
        self._tree.insert(slot, slot.tokens[: slot.length])

    def trim(self, slot: Slot, length: int) -> None:
        """Note that the slot holds its first `length` tokens only."""
        if length == 0 and not slot.busy:
            self._tree.remove(slot)
        elif slot in self._tree:
            self._tree.trim(slot, length)

    def match(self, tokens: Tokens) -> tuple[Slot | None, int]:
        """Return the slot with the longest common prefix, and its length; idle slots win ties."""
        walk = self._tree.walk(tokens)
        best, length = walk.holder(_is_idle), walk.length
        for node in walk.passed:
            for slot in node.ends:
                if slot.length > node.depth:
                    common = node.depth + common_prefix(slot.tokens[node.depth : slot.length], tokens[node.depth :])
                    if common > length:
                        best, length = slot, common
        return best, length

    def ends_at(self, tokens: Tokens) -> list[Slot]:
        """Return the slots that were indexed with exactly these tokens."""
        walk = self._tree.walk(tokens)
        return list(walk.node.ends) if walk.length == walk.node.depth == len(tokens) else []


def _is_idle(slot: Slot) -> bool:
    return not slot.busy
