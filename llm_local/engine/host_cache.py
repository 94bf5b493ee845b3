"""KV of idle sequences in ordinary memory, from where it comes back faster than it is computed. Engine thread.

On a CPU every resident cell costs time in every step, masked or not (Qwen2.5-0.5B: 5 % for 1,000 cells), so what is
not in use moves here; on a GPU only what has to make room for others does.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """A sequence's tokens and the native bytes of their KV."""

    tokens: Tokens
    data: bytearray


class HostCache:
    """Parked sequences, the least recently used dropped first.

    Args:
        max_bytes: most bytes of all together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._parked: OrderedDict[int, Parked] = OrderedDict()

    def __len__(self) -> int:
        """Return how many sequences are parked."""
        return len(self._parked)

    def put(self, tokens: Tokens, data: bytearray) -> None:
        """Take a sequence in; those whose tokens it begins with are superseded."""
        if len(data) > self.max_bytes:
            return
        for key, other in list(self._parked.items()):
            common = common_prefix(other.tokens, tokens)
            if common == len(other.tokens):
                self._drop(key)
            elif common == len(tokens):
                self._parked.move_to_end(key)
                return
        parked = Parked(tokens.copy(), data)
        self._parked[id(parked)] = parked
        self.n_bytes += len(data)
        while self.n_bytes > self.max_bytes:
            self._drop(next(iter(self._parked)))

    def match(self, tokens: Tokens) -> tuple[Parked | None, int]:
        """Return the sequence with the longest common prefix, and its length."""
        best, length = None, 0
        for parked in self._parked.values():
            common = common_prefix(parked.tokens, tokens)
            if common > length:
                best, length = parked, common
        if best is not None:
            self._parked.move_to_end(id(best))
        return best, length

    def remove(self, parked: Parked) -> None:
        """Drop a sequence, if it is still there."""
        self._drop(id(parked))

    def _drop(self, key: int) -> None:
        parked = self._parked.pop(key, None)
        if parked is not None:
            self.n_bytes -= len(parked.data)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Return how many leading tokens are the same."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    different = a[:n] != b[:n]
    first = int(different.argmax())
    return first if different[first] else n
