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

from bisect import bisect_left

EDGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
"""Largest work of each point; the last one takes all that are larger."""

WEIGHT_LONGER, WEIGHT_SHORTER = 0.15, 0.5
"""Of the newest decode in its point's mean. What disturbs a decode only makes it longer."""

OUTLIER = 3.0
"""A decode that took so many times its point's mean counts as that: another process had the CPU."""


class StepTime:
    """Seconds by work. Without a decode to learn from it knows nothing, and says so.

    (Plain lists: it is asked at every step, and for twenty points they are quicker than arrays.)
    """

    def __init__(self) -> None:
        self._means: dict[int, tuple[float, float]] = {}
        self._works: list[float] = []
        self._seconds: list[float] = []

    def note(self, work: float, seconds: float, trust: float = 1.0) -> None:
        """Take in how long a decode took; `trust` (0 to 1) scales its weight."""
        at = min(bisect_left(EDGES, work), len(EDGES) - 1)
        if at in self._means:
            mean_work, mean = self._means[at]
            seconds = min(seconds, OUTLIER * mean)
            weight = trust * (WEIGHT_LONGER if seconds > mean else WEIGHT_SHORTER)
            self._means[at] = mean_work + weight * (work - mean_work), mean + weight * (seconds - mean)
        else:
            self._means[at] = work, seconds
        self._works = []

    def seconds(self, work: float) -> float | None:
        """Return how long so much work will take; None when nothing is known."""
        if not self._known():
            return None
        return self._line(work, self._works, self._seconds)

    def work_within(self, seconds: float) -> float | None:
        """Return how much work takes at most `seconds`, at least 0; None when nothing is known."""
        if not self._known():
            return None
        return 0.0 if seconds < self._seconds[0] else self._line(seconds, self._seconds, self._works)

    def _known(self) -> bool:
        """Put the points in order.

        More work never takes less time, and never more for each row: so a point that has not been visited since the
        machine was busy does not stand out for ever.
        """
        if not self._works and self._means:
            points = [self._means[at] for at in sorted(self._means)]
            self._works = [work for work, _ in points]
            self._seconds = []
            before_work, before = points[0]
            for work, seconds in points:
                most = before * max(work / before_work, 1.0)
                before_work, before = work, min(max(seconds, before * (1 + 1e-9)), most)
                self._seconds.append(before)
        return bool(self._works)

    @staticmethod
    def _line(x: float, xs: list[float], ys: list[float]) -> float:
        """Return y at x: on the line between two points; before the first its y, behind the last the line from it."""
        if x <= xs[0]:
            return ys[0]
        if x >= xs[-1]:
            if len(xs) == 1:
                return ys[0] * x / xs[0]
            return ys[-1] + (x - xs[-1]) * (ys[-1] - ys[0]) / (xs[-1] - xs[0])
        at = bisect_left(xs, x)
        share = (x - xs[at - 1]) / (xs[at] - xs[at - 1])
        return ys[at - 1] + share * (ys[at] - ys[at - 1])
