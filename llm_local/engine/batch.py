"""The rows of one decode. Engine thread; one object, cleared and filled again at each step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_local.engine.sequence import Sequence
from llm_local.engine.step_costs import cells_seen, cells_seen_in_tiles


@dataclass(slots=True)
class Part:
    """The rows `first` to `first + n_rows` of the batch are one sequence's tokens from position `start` on."""

    sequence: Sequence
    first: int
    n_rows: int
    start: int

    def row_before(self, position: int) -> int:
        """Return the row whose logits predict the token at `position`, after the sequence's rows were computed."""
        return self.first + position - 1 - self.start


class Rows:
    """Rows of (token, position, slot, wants logits), as arrays of length `n_max` of which the first `n_rows` count.

    Attributes:
        n_outputs: rows with logits.
        n_seen, n_seen_in_tiles: cells that the rows attend to, one by one or by the tile; see `step_costs`.
    """

    def __init__(self, n_max: int, tile: int = 0) -> None:
        self.n_max = n_max
        self.n_rows = 0
        self.n_outputs = 0
        self.n_seen = self.n_seen_in_tiles = 0.0
        self._tile = tile
        self.tokens = np.zeros(n_max, np.int32)
        self.positions = np.zeros(n_max, np.int32)
        self.slots = np.zeros(n_max, np.int32)
        self.outputs = np.zeros(n_max, np.int8)

    def __bool__(self) -> bool:
        return self.n_rows > 0

    @property
    def room(self) -> int:
        """How many rows still fit."""
        return self.n_max - self.n_rows

    def clear(self) -> None:
        """Forget all rows."""
        self.n_rows = self.n_outputs = 0
        self.n_seen = self.n_seen_in_tiles = 0.0

    def extend(self, tokens: npt.NDArray[np.int32], position: int, slot: int, first_output: int) -> None:
        """Add consecutive tokens of one slot; those from the `first_output`-th on want logits."""
        n = len(tokens)
        first, last = self.n_rows, self.n_rows + n
        self.tokens[first:last] = tokens
        self.positions[first:last] = np.arange(position, position + n)
        self.slots[first:last] = slot
        self.outputs[first:last] = 0
        if first_output < n:
            self.outputs[first + first_output : last] = 1
            self.n_outputs += n - first_output
        self.n_rows = last
        self.n_seen += cells_seen(n, position)
        self.n_seen_in_tiles += cells_seen_in_tiles(n, position, self._tile)


class Batch(Rows):
    """Rows that belong to sequences."""

    def __init__(self, n_max: int, tile: int = 0) -> None:
        super().__init__(n_max, tile)
        self.parts: list[Part] = []

    def clear(self) -> None:
        """Forget all rows."""
        super().clear()
        self.parts = []

    def add(self, sequence: Sequence, n: int) -> None:
        """Add the next `n` tokens that the sequence has not computed yet, and what it guesses after them."""
        start = sequence.computed
        self.parts.append(Part(sequence, self.n_rows, n, start))
        first_output = 0 if sequence.wants_prompt_logits else sequence.length - 1 - start + bool(sequence.forced)
        self.extend(sequence.tokens[start : start + n], start, sequence.slot, first_output)
