"""The rows of one decode. Engine thread; one object, cleared and filled again at each step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_local.engine.sequence import Sequence


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


class Batch:
    """Rows of (token, position, slot, wants logits), as arrays of length `n_max` of which the first `n_rows` count."""

    def __init__(self, n_max: int) -> None:
        self.n_max = n_max
        self.n_rows = 0
        self.parts: list[Part] = []
        self.tokens = np.zeros(n_max, np.int32)
        self.positions = np.zeros(n_max, np.int32)
        self.slots = np.zeros(n_max, np.int32)
        self.outputs = np.zeros(n_max, np.int8)

    def __bool__(self) -> bool:
        return self.n_rows > 0

    @property
    def n_outputs(self) -> int:
        """How many rows have logits."""
        return int(np.count_nonzero(self.outputs[: self.n_rows]))

    @property
    def room(self) -> int:
        """How many rows still fit."""
        return self.n_max - self.n_rows

    def clear(self) -> None:
        """Forget all rows."""
        self.n_rows = 0
        self.parts = []

    def add(self, sequence: Sequence, n: int) -> None:
        """Add the next `n` tokens that the sequence has not computed yet, and what it guesses after them."""
        first, last = self.n_rows, self.n_rows + n
        start = sequence.computed
        self.tokens[first:last] = sequence.tokens[start : start + n]
        self.positions[first:last] = np.arange(start, start + n)
        self.slots[first:last] = sequence.slot
        self.outputs[first:last] = sequence.wants_prompt_logits
        if start + n >= sequence.length:
            self.outputs[first + sequence.length - 1 - start : last] = 1
        self.parts.append(Part(sequence, first, n, start))
        self.n_rows = last
