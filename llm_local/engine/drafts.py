"""When a draft model is asked for guesses, and for how many. Engine thread.

A small model writes k tokens one after another; the large one computes them in one batch and keeps those that it would
have sampled itself. Whether that wins depends on how often they hold and on what both models' steps take, and all of
that is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from llm_local.engine.pace import MARGIN, Pace
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

    def seconds(self, n_sequences: int) -> float | None:
        """Return how long it takes to draft one token for so many sequences; None when that is not known."""
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

    def guess(self, sequences: list[Sequence], n_rows: int, n_answers: int, most: int) -> int:
        """Let the sequences guess as many tokens each as are worth it, at most `most`; return how many in all.

        Args:
            sequences: running answers without another guess.
            n_rows: rows of the batch so far.
            n_answers: answers among them.
        """
        n = self._worthwhile(len(sequences), n_rows, n_answers, min(most, MOST_DRAFTED))
        if n == 0:
            return 0
        drafted = self._drafter.draft(sequences, n)
        return sum(sequence.guess_drafted(tokens) for sequence, tokens in zip(sequences, drafted, strict=True))

    def _worthwhile(self, n_sequences: int, n_rows: int, n_answers: int, most: int) -> int:
        draft_s = self._drafter.seconds(n_sequences)
        if draft_s is None or n_sequences == 0:
            return 0
        rate = self._held / self._tried
        best, best_gain, could_win = 0, 0.0, 0.0
        for n in range(1, most + 1):
            rows, cost_s = n * n_sequences, n * draft_s
            expected = rate * (1 - rate**n) / (1 - rate) if rate < 1 else float(n)
            gain = self._pace.gain_s(expected * n_sequences, rows, n_rows, n_answers) - cost_s
            could_win = max(could_win, self._pace.gain_s(float(rows), rows, n_rows, n_answers) - cost_s)
            if gain > best_gain:
                best, best_gain = n, gain
        if best == 0 and could_win > 0.0:
            return self._probe(draft_s, n_rows)
        return best

    def _probe(self, draft_s: float, n_rows: int) -> int:
        """Draft a token now and then although it does not pay, to see whether that has changed: 3 % of the time."""
        now = time.monotonic()
        if now < self._probe_at:
            return 0
        self._probe_at = now + (draft_s + self._pace.cost_s(1, n_rows)) / MARGIN
        return 1
