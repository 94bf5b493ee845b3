"""How long a decode takes on this machine by its work, learnt from those that were. Engine thread.

Work is counted in rows: one for each row of the batch, and a part of one for each that has logits (see `Backend`).

What is decided by it: how much of a prompt is read beside running answers, and how many guessed tokens are worth a row.
Only ratios and rough sizes matter, so that a few points and straight lines between them are enough:

    seconds |                      o
            |            o
            |   o  o                        o = running mean of the decodes of about that size
            +--------------------------- work
"""

from __future__ import annotations

import numpy as np

EDGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
"""Largest work of each point; the last one takes all that are larger."""

WEIGHT = 0.15
"""Of the newest decode in its point's mean."""

OUTLIER = 3.0
"""A decode that took so many times its point's mean counts as that: another process had the CPU."""


class StepTime:
    """Seconds by work. Without a decode to learn from it knows nothing, and says so."""

    def __init__(self) -> None:
        self._work = np.zeros(len(EDGES))
        self._seconds = np.zeros(len(EDGES))
        self._known = np.zeros(len(EDGES), bool)
        self._points: tuple[list[float], list[float]] | None = None

    def note(self, work: float, seconds: float) -> None:
        """Take in how long a decode took."""
        at = min(int(np.searchsorted(EDGES, work)), len(EDGES) - 1)
        if not self._known[at]:
            self._work[at], self._seconds[at], self._known[at] = work, seconds, True
        else:
            seconds = min(seconds, OUTLIER * self._seconds[at])
            self._work[at] += WEIGHT * (work - self._work[at])
            self._seconds[at] += WEIGHT * (seconds - self._seconds[at])
        self._points = None

    def seconds(self, work: float) -> float | None:
        """Return how long so much work will take; None when nothing is known."""
        known = self._known_points()
        if known is None:
            return None
        works, seconds = known
        if work <= works[-1]:
            return float(np.interp(work, works, seconds))
        return seconds[-1] + (work - works[-1]) * self._slope(known)

    def work_within(self, seconds: float) -> float | None:
        """Return how much work takes at most `seconds`, at least 0; None when nothing is known."""
        known = self._known_points()
        if known is None:
            return None
        works, times = known
        if seconds < times[0]:
            return 0.0
        if seconds <= times[-1]:
            return float(np.interp(seconds, times, works))
        return works[-1] + (seconds - times[-1]) / self._slope(known)

    def _known_points(self) -> tuple[list[float], list[float]] | None:
        """Return work and seconds of the points, both rising: more work never takes less time."""
        if self._points is None and self._known.any():
            works = self._work[self._known]
            seconds = np.maximum.accumulate(self._seconds[self._known])
            seconds += np.arange(len(seconds)) * 1e-9
            self._points = works.tolist(), seconds.tolist()
        return self._points

    @staticmethod
    def _slope(known: tuple[list[float], list[float]]) -> float:
        """Return the seconds of one more row beyond the largest point: as from the first point to that one."""
        works, seconds = known
        if len(works) < 2 or works[-1] <= works[0]:
            return max(seconds[-1] / works[-1], 1e-9)
        return max((seconds[-1] - seconds[0]) / (works[-1] - works[0]), 1e-9)
