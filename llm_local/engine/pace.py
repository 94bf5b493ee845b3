"""How many rows a step may have: prompts are read and guesses computed no faster than running answers can bear.

Engine thread; all decisions come from measured step times.
"""

from __future__ import annotations

import math
import time

from llm_local.engine.step_time import StepTime

GAP_FACTOR = 5.0
"""Without a target, a step with prompt rows may take so many times one without."""

LEAST_GAP_S = 0.15
"""... and at least this long: below it no reader feels a step, and short prompt pieces cost reading speed."""

GUESS_FACTOR = 2.0
"""The same factor for steps with guesses, when several answers run."""

LEAST_PROMPT_ROWS = 8
"""Prompts get so many rows whatever the target, so that they are not starved."""

UNKNOWN_PROMPT_ROWS = 32
"""Prompt rows beside running answers while no step time is known."""

QUIET_STEP_S = 1.0
"""Longest step when only prompts are read: a newcomer waits for the end of it."""

QUIET_ROWS = 128
"""Prompt rows of a step that are never too many when nobody waits for its end: fewer cost reading speed."""

MOST_GUESSED = 24
"""Guessed tokens of one sequence in one step."""

MARGIN = 0.03
"""A guess must win this share of a step over what it costs, so that measuring errors do not make it a loss."""

PROBE, LIKELY = 6, 0.7
"""Guessed tokens that are computed for the sake of measuring, and the share of them that is to be expected to hold."""


class Pace:
    """Rows by time.

    Args:
        step_time: what is known.
        n_batch: most rows of a decode.
        output_cost: work of a row's logits, in rows; see `Backend`.
        target_gap_s: longest step in which answers are running; None follows the time of a step without prompts.
        prefill_chunk: prompt rows beside running answers, whatever they cost; None goes by the time.
    """

    def __init__(
        self,
        step_time: StepTime,
        n_batch: int,
        *,
        output_cost: float = 0.0,
        target_gap_s: float | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        self.step_time = step_time
        self._n_batch = n_batch
        # An answer's row, guessed or not, has logits; a prompt's row has none.
        self._answer_work = 1.0 + output_cost
        self._target_gap_s = target_gap_s
        self._prefill_chunk = prefill_chunk
        self._probe_at = 0.0

    def prompt_rows(self, n_answer_rows: int, *, n_guessed: int = 0, n_prompts: int = 1) -> int:
        """Return how many prompt rows may join a batch.

        Args:
            n_answer_rows: rows of running answers.
            n_guessed: rows of guesses behind them.
            n_prompts: how many prompts are to be read.
        """
        room = self._n_batch - n_answer_rows - n_guessed
        if n_answer_rows == 0:
            work = self.step_time.work_within(QUIET_STEP_S)
            return room if work is None else min(room, max(int(work), QUIET_ROWS))
        if self._prefill_chunk is not None:
            return min(room, self._prefill_chunk)
        work = self.step_time.work_within(self._gap_s(n_answer_rows, n_prompts))
        if work is None:
            return min(room, UNKNOWN_PROMPT_ROWS)
        left = int(work - self._answer_work * (n_answer_rows + n_guessed))
        return min(room, max(left, LEAST_PROMPT_ROWS))

    def worthwhile_guesses(self, expected: list[float], n_rows: int, n_answers: int) -> int:
        """Return how many guessed tokens are worth their rows, often none.

        A row is worth it as long as the tokens it is expected to yield would take longer by themselves: at the present
        pace, a step of `n_rows` yields `n_answers` tokens.

        Args:
            expected: how many of the first 1, 2, ... guessed tokens will hold.
            n_rows: rows of the batch so far.
            n_answers: answers among them.
        """
        best, best_gain = 0, 0.0
        for k, tokens in enumerate(expected, 1):
            gain = self.gain_s(tokens, k, n_rows, n_answers)
            if gain > best_gain:
                best, best_gain = k, gain
        return best or self._probe(expected, n_rows)

    def _probe(self, expected: list[float], n_rows: int) -> int:
        """Take likely guesses now and then although they do not seem to pay: perhaps the step times are out of date.

        As a larger step is measured by taking it only, this spends at most 3 % of the time on that.
        """
        k = min(len(expected), PROBE)
        now = time.monotonic()
        if k < PROBE or expected[k - 1] < LIKELY * k or now < self._probe_at or self._seconds(n_rows) is None:
            return 0
        self._probe_at = now + self.cost_s(k, n_rows) / MARGIN
        return k

    def gain_s(self, tokens: float, n_more: int, n_rows: int, n_answers: int) -> float:
        """Return what `n_more` guessed rows win, in seconds, when `tokens` of them hold; below 0 when they lose."""
        now = self._seconds(n_rows)
        if now is None or n_answers == 0:
            return -math.inf
        cost = self.cost_s(n_more, n_rows)
        if now + cost > self._guess_gap_s(n_answers):
            return -math.inf
        return tokens * now / n_answers - cost - MARGIN * now

    def cost_s(self, n_more: int, n_rows: int) -> float:
        """Return by how many seconds `n_more` guessed rows lengthen a step of `n_rows`."""
        now, then = self._seconds(n_rows), self._seconds(n_rows + n_more)
        return 0.0 if now is None or then is None else then - now

    def _gap_s(self, n_answer_rows: int, n_prompts: int = 1) -> float:
        """Return how long a step may take. Without a target, more people who wait than read make it longer."""
        if self._target_gap_s is not None:
            return self._target_gap_s
        gap = max(GAP_FACTOR * (self._seconds(n_answer_rows) or 0.0), LEAST_GAP_S)
        return max(gap, min(gap * n_prompts / n_answer_rows, QUIET_STEP_S))

    def _guess_gap_s(self, n_answers: int) -> float:
        """Return how long a step with guesses may take: those whose answers are not guessed wait for it, too."""
        if self._target_gap_s is None and n_answers > 1:
            return GUESS_FACTOR * (self._seconds(n_answers) or 0.0)
        return self._gap_s(n_answers)

    def _seconds(self, n_answer_rows: int) -> float | None:
        return self.step_time.seconds(self._answer_work * n_answer_rows)
