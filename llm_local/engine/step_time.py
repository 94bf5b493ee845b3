"""How long a decode of so many rows takes on this machine, learnt from those that were. Engine thread.

What is decided by it: how much of a prompt is read beside running answers, and how many guessed tokens are worth a row.
Only ratios and rough sizes matter, so that a few points and straight lines between them are enough:

    seconds |                      o
            |            o
            |   o  o                        o = running mean of the decodes of about that many rows
            +--------------------------- rows
"""

from __future__ import annotations

import math

import numpy as np

EDGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
"""Largest number of rows of each point; the last one takes all that are larger."""

WEIGHT = 0.15
"""Of the newest decode in its point's mean."""

OUTLIER = 3.0
"""A decode that took so many times its point's mean counts as that: another process had the CPU."""


class StepTime:
    """Seconds by rows. Without a decode to learn from it knows nothing, and says so."""

    def __init__(self) -> None:
        self._rows = np.zeros(len(EDGES))
        self._seconds = np.zeros(len(EDGES))
        self._known = np.zeros(len(EDGES), bool)
        self._points: tuple[list[float], list[float]] | None = None

    def note(self, n_rows: int, seconds: float) -> None:
        """Take in how long a decode took."""
        at = min(int(np.searchsorted(EDGES, n_rows)), len(EDGES) - 1)
        if not self._known[at]:
            self._rows[at], self._seconds[at], self._known[at] = n_rows, seconds, True
        else:
            seconds = min(seconds, OUTLIER * self._seconds[at])
            self._rows[at] += WEIGHT * (n_rows - self._rows[at])
            self._seconds[at] += WEIGHT * (seconds - self._seconds[at])
        self._points = None

    def seconds(self, n_rows: int) -> float | None:
        """Return how long `n_rows` rows will take; None when nothing is known."""
        known = self._known_points()
        if known is None:
            return None
        rows, seconds = known
        if n_rows <= rows[-1]:
            return float(np.interp(n_rows, rows, seconds))
        return seconds[-1] + (n_rows - rows[-1]) * self._slope(known)

    def rows_within(self, seconds: float) -> int | None:
        """Return how many rows take at most `seconds`, at least 0; None when nothing is known."""
        known = self._known_points()
        if known is None:
            return None
        rows, times = known
        if seconds < times[0]:
            return 0
        if seconds <= times[-1]:
            return int(np.interp(seconds, times, rows))
        return int(rows[-1] + (seconds - times[-1]) / self._slope(known))

    def _known_points(self) -> tuple[list[float], list[float]] | None:
        """Return rows and seconds of the points, both rising: more rows never take less time."""
        if self._points is None and self._known.any():
            rows = self._rows[self._known]
            seconds = np.maximum.accumulate(self._seconds[self._known])
            seconds += np.arange(len(seconds)) * 1e-9
            self._points = rows.tolist(), seconds.tolist()
        return self._points

    @staticmethod
    def _slope(known: tuple[list[float], list[float]]) -> float:
        """Return the seconds of one more row beyond the largest point: as from the first point to that one."""
        rows, seconds = known
        if len(rows) < 2 or rows[-1] <= rows[0]:
            return max(seconds[-1] / rows[-1], 1e-9)
        return max((seconds[-1] - seconds[0]) / (rows[-1] - rows[0]), 1e-9, math.ulp(seconds[-1]))
