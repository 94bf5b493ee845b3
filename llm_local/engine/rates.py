"""How fast KV is computed, saved, loaded and read, as it was measured; what pays is decided by that. Engine thread."""

from __future__ import annotations

KEEP = 0.9
"""What a measurement still weighs after the next one of the same size."""

TRY_AGAIN = 20
"""Refusals in a row after which one load is let through: a rate that is not used is not measured either."""


class Rate:
    """Something per second, a moving average weighted by amount."""

    def __init__(self) -> None:
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Take a measurement in."""
        self._amount = KEEP * self._amount + amount
        self._seconds = KEEP * self._seconds + max(seconds, 1e-9)

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self._amount > 0

    def seconds(self, amount: float) -> float:
        """Return how long `amount` should take; 0 as long as nothing was measured."""
        return amount * self._seconds / self._amount if self.known else 0.0


class Rates:
    """The rates of one engine.

    Attributes:
        computed: tokens of prompts.
        saved, loaded: bytes between the cells and ordinary memory.
        read: bytes of files, checked.
    """

    def __init__(self) -> None:
        self.computed = Rate()
        self.saved = Rate()
        self.loaded = Rate()
        self.read = Rate()
        self._refused = 0

    def loading_pays(self, n_tokens: int, n_bytes: int, *, from_disk: bool = False) -> bool:
        """Tell whether `n_bytes` are loaded sooner than `n_tokens` computed. Unknown rates are in favour of it."""
        if not self.computed.known:
            return True
        load_s = self.loaded.seconds(n_bytes) + (self.read.seconds(n_bytes) if from_disk else 0.0)
        if load_s < self.computed.seconds(n_tokens):
            self._refused = 0
            return True
        self._refused += 1
        if self._refused < TRY_AGAIN:
            return False
        self._refused = 0
        return True

    def parking_pays(self, n_tokens: int, n_bytes: int) -> bool:
        """Tell whether saving `n_bytes` and loading them again is sooner than computing `n_tokens` again."""
        if not self.computed.known:
            return True
        return self.saved.seconds(n_bytes) + self.loaded.seconds(n_bytes) < self.computed.seconds(n_tokens)
