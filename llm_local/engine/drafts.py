"""When a draft model is asked for guesses, and for how many. Engine thread.

A small model writes k tokens one after another; the large one computes them in one batch and keeps those that it would
have sampled itself. Whether that wins depends on how often they hold and on what both models' steps take, and all of
that is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from llm_local.engine.pace import MARGIN, Answers, Pace
from llm_local.engine.sequence import Sequence
from llm_local.engine.types import Token

MOST_DRAFTED = 8
"""Tokens that are drafted for one step."""

FORGET = 0.99
"""Weight that older outcomes keep with each new one."""

PRIOR_HELD, PRIOR_TRIED = 7.0, 10.0


class Drafter(Protocol):
    """A smaller model with the same vocabulary. Engine thread."""

    def draft(self, wanted: SequenceOf[Sequence], n: int) -> list[list[Token]]:
        """Return up to `n` likely next tokens of each sequence: fewer, or none, for one that it has yet to read."""
        ...

    def seconds(self, positions: SequenceOf[int]) -> float | None:
        """Return how long it takes to draft one token for sequences at these positions; None when it is not known."""
        ...

    def close(self) -> None:
        """Free all native memory."""
        ...


class Drafts:
    """The policy over one drafter.

    Args:
        drafter: what is asked.
        pace: knows what the large model's steps take.
    """

    def __init__(self, drafter: Drafter, pace: Pace) -> None:
        self._drafter = drafter
        self._pace = pace
        self._held, self._tried = PRIOR_HELD, PRIOR_TRIED
        self._probe_at = 0.0

    def note(self, held: int, tried: int) -> None:
        """Learn from drafted tokens that were checked."""
        weight: float = FORGET**tried
        self._held, self._tried = weight * self._held + held, weight * self._tried + tried

    def guess(self, sequences: list[Sequence], work: float, answers: Answers, most: int) -> int:
        """Let the sequences guess as many tokens each as are worth it, at most `most`; return how many in all.

        Args:
            sequences: running answers without another guess.
            work: of the batch so far.
            answers: in it.
            most: tokens of each.
        """
        n = self._worthwhile(sequences, work, answers, min(most, MOST_DRAFTED))
        if n == 0:
            return 0
        drafted = self._drafter.draft(sequences, n)
        return sum(sequence.guess_drafted(tokens) for sequence, tokens in zip(sequences, drafted, strict=True))

    def _worthwhile(self, sequences: list[Sequence], work: float, answers: Answers, most: int) -> int:
        draft_s = self._drafter.seconds([sequence.computed for sequence in sequences])
        if draft_s is None or not sequences:
            return 0
        rows_work = sum(self._pace.costs.row_work(sequence.computed) for sequence in sequences)
        rate = self._held / self._tried
        best, best_gain, could_win = 0, 0.0, 0.0
        for n in range(1, most + 1):
            expected = rate * (1 - rate**n) / (1 - rate) if rate < 1 else float(n)
            gain, most_gain = (
                self._pace.gain_s(tokens * len(sequences), n * rows_work, work, answers) - n * draft_s
                for tokens in (expected, float(n))
            )
            could_win = max(could_win, most_gain)
            if gain > best_gain:
                best, best_gain = n, gain
        if best == 0 and could_win > 0.0:
            return self._probe(draft_s, rows_work, work)
        return best

    def _probe(self, draft_s: float, row_work: float, work: float) -> int:
        """Draft a token now and then although it does not pay, to see whether that has changed: 3 % of the time."""
        now = time.monotonic()
        if now < self._probe_at:
            return 0
        self._probe_at = now + (draft_s + self._pace.cost_s(row_work, work)) / MARGIN
        return 1
