"""Where the engine's time goes: counters, and a line of them in the log at debug level. Engine thread."""

from __future__ import annotations

import logging
import time
from dataclasses import astuple, dataclass

log = logging.getLogger(__name__)

LOG_EVERY_S = 5.0


@dataclass(slots=True)
class EngineStats:
    """Counters of the engine thread since its start; times in seconds."""

    steps: int = 0
    rows: int = 0
    sampled_tokens: int = 0
    refused_tokens: int = 0
    step_s: float = 0.0
    decode_s: float = 0.0
    sample_s: float = 0.0


class StatsLog:
    """Says every few seconds, at debug level, what a step took since the last time."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats
        self._last = astuple(stats)
        self._next_at = 0.0

    def look(self) -> None:
        """Log when it is time to."""
        if not log.isEnabledFor(logging.DEBUG) or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + LOG_EVERY_S
        now = astuple(self._stats)
        steps, rows, sampled, refused, step, decode, sample = (
            new - old for new, old in zip(now, self._last, strict=True)
        )
        self._last = now
        if steps:
            log.debug(
                "%d steps: %.1f rows, %.2f tokens (%d refused), %.2f ms: decode %.2f, sampling %.3f, the rest %.3f",
                steps,
                rows / steps,
                sampled / steps,
                refused,
                *(seconds / steps * 1e3 for seconds in (step, decode, sample, step - decode - sample)),
            )
