"""How many rows a step may have: prompts are read and guesses computed no faster than running answers can bear.

Engine thread; all decisions come from measured step times.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from llm_local.engine.batch import Rows
from llm_local.engine.step_costs import StepCosts

GAP_FACTOR = 6.0
"""Without a target, a step with prompt rows may take so many times one without."""

LEAST_GAP_S = 0.25
"""... and at least this long: below it no reader feels a step, and short prompt pieces cost reading speed."""

GUESS_FACTOR = 2.0
"""The same factor for steps with guesses, when several answers run."""

TILE_WORTH = 1.3
"""Without a target, answers may wait as long as for a quiet step for a tile of attention, if rows are read so many
times as fast that way: deep in a long prompt it is more than twice."""

LEAST_PROMPT_ROWS = 8
"""Prompts get so many rows whatever the target, so that they are not starved."""

LAST_PIECE = 1.3
"""Without a target, a piece may be so many times as large if prompts end with it: two would hold answers up longer."""

UNKNOWN_PROMPT_ROWS = 32
"""Prompt rows beside running answers while no step time is known."""

QUIET_STEP_S = 1.0
"""Longest step when only prompts are read: a newcomer waits for the end of it."""

QUIET_ROWS = 128
"""Prompt rows of a step that are never too many when nobody waits for its end: fewer cost reading speed."""

FORCED_FACTOR = 1.2
"""Without a target, a step may take so many times as long for the sake of forced tokens: all readers wait for it."""

MOST_GUESSED = 24
"""Guessed tokens of one sequence in one step."""

MARGIN = 0.03
"""A guess must win this share of a step over what it costs, so that measuring errors do not make it a loss."""

PROBE, LIKELY = 6, 0.7
"""Guessed tokens that are computed for the sake of measuring, and the share of them that is to be expected to hold."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers that run in a step: how many, and the work of their rows without guesses."""

    n: int
    work: float


class Pace:
    """Rows by time.

    Args:
        costs: what is known of steps.
        target_gap_s: longest step in which answers are running; None follows the time of a step without prompts.
        prefill_chunk: prompt rows beside running answers, whatever they cost; None goes by the time.
    """

    def __init__(
        self,
        costs: StepCosts,
        *,
        target_gap_s: float | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        self.costs = costs
        self._target_gap_s = target_gap_s
        self._prefill_chunk = prefill_chunk
        self._probe_at = 0.0

    def prompt_rows(self, batch: Rows, answers: Answers, n_left: int, *, position: int, n_prompts: int = 1) -> int:
        """Return how many prompt rows may join a batch.

        Args:
            batch: the rows of running answers, and guesses behind them.
            answers: the former.
            n_left: rows that are left of all prompts.
            position: where the prompts' next rows are, about.
            n_prompts: how many prompts are to be read.
        """
        if answers.n == 0:
            rows = self._quiet_rows(batch.n_max, position)
            return batch.room if rows is None else min(batch.room, rows)
        if self._prefill_chunk is not None:
            return min(batch.room, self._prefill_chunk)
        rows = self._few(self.costs.work(batch), position, self._gap_s(answers, n_prompts))
        room = batch.room
        if batch.n_rows < self.costs.tile:
            room = min(room, max(self.costs.tile - 1 - batch.n_rows, LEAST_PROMPT_ROWS))
        if rows is None:
            return min(room, UNKNOWN_PROMPT_ROWS)
        if self._target_gap_s is None and n_left <= LAST_PIECE * rows:
            return min(room, n_left)
        return min(room, max(rows, LEAST_PROMPT_ROWS))

    def rows_apart(self, n_max: int, answers: Answers, *, position: int, n_prompts: int = 1) -> int:
        """Return how many prompt rows, in whole tiles, are to have a step to themselves between two of the answers.

        0 when prompts are read as fast in smaller pieces beside the answers. All rows of a tile go over the cells of
        each of them, so that answers in it, whose cells lie everywhere, would slow it down.

        Args:
            n_max: most rows of a batch, and not more than are to be read.
            answers: that run.
            position: where the prompts' next rows are, about.
            n_prompts: how many prompts are to be read.
        """
        costs, tile = self.costs, self.costs.tile
        gap, answers_s = self._gap_s(answers, n_prompts), self._seconds(answers.work)
        few = self._few(answers.work, position, gap)
        if not tile or few is None or self._prefill_chunk is not None:
            return 0
        longest = gap if self._target_gap_s is not None else max(gap, QUIET_STEP_S)
        few = max(min(few, tile - 1 - answers.n), LEAST_PROMPT_ROWS)
        best = 0
        best_rate = few / self._seconds(answers.work + few * costs.row_work(position, outputs=0.0))
        for n in range(tile, n_max + 1, tile):
            took = self._seconds(costs.prompt_work(n, position)) + answers_s
            if took > longest:
                break
            if n / took > best_rate * (1.0 if took <= gap else TILE_WORTH):
                best, best_rate = n, n / took
            if took > gap:
                break
        return best

    def _quiet_rows(self, n_max: int, position: int) -> int | None:
        """Return the prompt rows of a step in which nobody answers; None when step times are not known."""
        rows = self._few(0.0, position, QUIET_STEP_S)
        if rows is None or not self.costs.tile:
            return None if rows is None else max(rows, QUIET_ROWS)
        n = QUIET_ROWS
        while n < n_max and self._seconds(self.costs.prompt_work(n + self.costs.tile, position)) <= QUIET_STEP_S:
            n += self.costs.tile
        return n

    def _few(self, work: float, position: int, seconds: float) -> int | None:
        """Return how many rows at `position` may join so much work within the time; None when that is not known."""
        within = self.costs.work_within(seconds)
        return None if within is None else int((within - work) / self.costs.row_work(position, outputs=0.0))

    def spare_work(self, work: float) -> float:
        """Return how much work may be added to that of running answers for forced tokens."""
        now = self.costs.seconds(work)
        within = None if now is None else self.costs.work_within(max(FORCED_FACTOR * now, self._target_gap_s or 0.0))
        return math.inf if within is None else max(within - work, 0.0)

    def worthwhile_guesses(self, expected: list[float], row_work: float, work: float, answers: Answers) -> int:
        """Return how many guessed tokens are worth their rows, often none.

        A row is worth it as long as the tokens it is expected to yield would take longer by themselves: at the present
        pace, a step yields a token for each answer.

        Args:
            expected: how many of the first 1, 2, ... guessed tokens will hold.
            row_work: work of a guessed row.
            work: of the batch so far.
            answers: in it.
        """
        best, best_gain = 0, 0.0
        for k, tokens in enumerate(expected, 1):
            gain = self.gain_s(tokens, k * row_work, work, answers)
            if gain > best_gain:
                best, best_gain = k, gain
        return best or self._probe(expected, row_work, work)

    def _probe(self, expected: list[float], row_work: float, work: float) -> int:
        """Take likely guesses now and then although they do not seem to pay: perhaps the step times are out of date.

        As a larger step is measured by taking it only, this spends at most 3 % of the time on that.
        """
        k = min(len(expected), PROBE)
        now = time.monotonic()
        if k < PROBE or expected[k - 1] < LIKELY * k or now < self._probe_at or self.costs.seconds(work) is None:
            return 0
        self._probe_at = now + self.cost_s(k * row_work, work) / MARGIN
        return k

    def gain_s(self, tokens: float, more_work: float, work: float, answers: Answers) -> float:
        """Return what guessed rows win, in seconds, when `tokens` of them hold; below 0 when they lose."""
        now = self.costs.seconds(work)
        if now is None or answers.n == 0:
            return -math.inf
        cost = self.cost_s(more_work, work)
        if now + cost > self._guess_gap_s(answers):
            return -math.inf
        return tokens * now / answers.n - cost - MARGIN * now

    def cost_s(self, more_work: float, work: float) -> float:
        """Return by how many seconds more work lengthens a step."""
        now, then = self.costs.seconds(work), self.costs.seconds(work + more_work)
        return 0.0 if now is None or then is None else then - now

    def _gap_s(self, answers: Answers, n_prompts: int = 1) -> float:
        """Return how long a step may take. Without a target, more people who wait than read make it longer."""
        if self._target_gap_s is not None:
            return self._target_gap_s
        gap = max(GAP_FACTOR * self._seconds(answers.work), LEAST_GAP_S)
        return max(gap, min(gap * n_prompts / answers.n, QUIET_STEP_S))

    def _guess_gap_s(self, answers: Answers) -> float:
        """Return how long a step with guesses may take: those whose answers are not guessed wait for it, too."""
        if self._target_gap_s is None and answers.n > 1:
            return GUESS_FACTOR * self._seconds(answers.work)
        return self._gap_s(answers)

    def _seconds(self, work: float) -> float:
        return self.costs.seconds(work) or 0.0
