"""How far a download is: bytes, rate, time left. Written by the thread that downloads, read by any."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 20.0
"""The rate is that of the last seconds, so that it follows the network and does not jump."""


class Progress:
    """The state of one download; whoever shows it gives `on_change`.

    Attributes:
        what: the model that is fetched.
        total, done: bytes, of all shards; `done` includes what was there from an earlier start.
        resumed: bytes that were there at the beginning.
        note: what happens just now beside downloading (waiting, checking, trying again), or None.
    """

    def __init__(
        self, on_change: Callable[[Progress], None] = lambda _: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.what = ""
        self.total = self.done = self.resumed = 0
        self.note: str | None = None
        self._on_change, self._clock = on_change, clock
        self._samples: deque[tuple[float, int]] = deque()

    def begin(self, what: str, total: int, done: int) -> None:
        """Say what is fetched, how much it is, and how much is there already."""
        self.what, self.total, self.done, self.resumed = what, total, done, done
        self._samples.clear()
        self.advance(0)

    def advance(self, n: int) -> None:
        """Count bytes that came; negative where bytes had to be thrown away."""
        self.done += n
        self.note = None
        now = self._clock()
        if n < 0:
            self._samples.clear()
        self._samples.append((now, self.done))
        while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        self._on_change(self)

    def say(self, note: str) -> None:
        """Note what happens beside downloading."""
        self.note = note
        self._on_change(self)

    @property
    def rate(self) -> float:
        """Bytes a second lately; 0 where that is not known."""
        samples = list(self._samples)
        seconds = samples[-1][0] - samples[0][0] if len(samples) > 1 else 0.0
        return (samples[-1][1] - samples[0][1]) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time until all is there at this rate."""
        return (self.total - self.done) / self.rate if self.rate > 0 and self.total else None

    def __str__(self) -> str:
        if self.note is not None:
            return self.note
        if not self.total:
            return f"downloading {self.what}, {size(self.done)} so far"
        text = f"downloading {self.done * 100 // self.total} % of {self.what} ({size(self.total)})"
        left = self.seconds_left
        return text if left is None else f"{text}, {size(self.rate)}/s, {duration(left)} left"


def size(n_bytes: float) -> str:
    """Return bytes as people read them: 5.4 GB, 12 MB, 3 kB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            value = n_bytes / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float) -> str:
    """Return a time as people read it: 40 s, 7 min, 2 h 10 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
