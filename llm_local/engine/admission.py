"""Who may still come in: the queue's limit, and how long a newcomer will wait. Event loop only."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence as SequenceOf

from llm_local.engine.types import GenerationRequest, Usage
from llm_local.errors import DeadlineExceeded, QueueFull

WEIGHT = 0.1
"""Of the newest answer in the mean time of answers."""

LEAST_ANSWERS = 8
"""Answers that must have been seen before a wait is predicted from their mean time."""

MOST_RETRY_S = 60


class Admission:
    """Counts the sequences that run or wait.

    Args:
        max_running: most sequences decoded together.
        queue_max: most sequences that wait beside them.
    """

    def __init__(self, max_running: int, queue_max: int) -> None:
        self.max_running = max_running
        self.capacity = max_running + queue_max
        self.n_open = 0
        self._of_priority: Counter[int] = Counter()
        self._answer_s = 0.0
        self._n_answers = 0

    def check(self, requests: SequenceOf[GenerationRequest]) -> None:
        """Refuse what finds the queue full, or would meet its deadline while it waits.

        Raises:
            DeadlineExceeded: it has passed already.
            QueueFull: with the time after which to come back.
        """
        n, first = len(requests), requests[0]
        if self.n_open + n > self.capacity:
            raise QueueFull(
                f"The server is busy: {self.n_open} sequences run or wait, and at most {self.capacity} may. "
                "Try again later.",
                retry_after_s=_whole(self._answer_s * (self.n_open + n - self.capacity) / self.max_running),
            )
        if first.deadline is None:
            return
        if first.deadline <= time.monotonic():
            raise DeadlineExceeded("The request's deadline passed.")
        wait, timeout = self.predicted_wait_s(first.priority, n), first.deadline - time.monotonic()
        if wait > timeout:
            raise QueueFull(
                f"The server is busy: this request would wait about {wait:.0f} s for its turn, longer than its timeout "
                f"of {timeout:.0f} s. Try again later, or give it a longer 'timeout'.",
                retry_after_s=_whole(wait - timeout),
            )

    def predicted_wait_s(self, priority: int, n: int = 1) -> float:
        """Return how long `n` new sequences will wait: those before them, at the mean time of an answer."""
        before = sum(count for other, count in self._of_priority.items() if other <= priority)
        too_many = before + n - self.max_running
        if too_many <= 0 or self._n_answers < LEAST_ANSWERS:
            return 0.0
        return self._answer_s * too_many / self.max_running

    def entered(self, priority: int, n: int) -> None:
        """Count `n` sequences in."""
        self.n_open += n
        self._of_priority[priority] += n

    def ended(self, priority: int, usage: Usage | None) -> None:
        """Count a sequence out, and learn from it how long an answer takes."""
        self.n_open -= 1
        self._of_priority[priority] -= 1
        if not self._of_priority[priority]:
            del self._of_priority[priority]
        if usage is not None:
            seconds = (usage.prompt_ms + usage.generation_ms) / 1e3
            self._n_answers += 1
            weight = max(WEIGHT, 1 / self._n_answers)
            self._answer_s += weight * (seconds - self._answer_s)


def _whole(seconds: float) -> int:
    return min(max(math.ceil(seconds), 1), MOST_RETRY_S)
