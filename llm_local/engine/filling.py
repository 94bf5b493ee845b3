"""Which rows a batch has, of the sequences that run: those of answers, and beside them or in turn with them prompts'.

A batch has the rows of every sequence that is only a few tokens behind (the one that was sampled and those that a
constraint forced after it), and the rest of its room goes to prompts, the oldest first and much shorter ones beside it;
or, where whole tiles of attention are much faster, prompts have every second batch to themselves. Engine thread.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from llm_local.engine.batch import Batch
from llm_local.engine.drafts import Drafts
from llm_local.engine.pace import MOST_GUESSED, Answers, Pace
from llm_local.engine.sequence import Sequence

FEW = 12
"""A sequence so many tokens behind catches up at once; more are read in parts, like a prompt."""

MUCH_SHORTER = 2
"""A prompt of which so many times as many tokens are left as of a later one lets that one have half of the rows."""

NEXT_ROWS = 64
"""Rows of prompts by whose places their cost is told: about what a step beside answers has of them."""

ROW_GROUP = 4
"""Rows that the CPU's matrix kernels compute together: of 4, 5 and 8 rows, 5 cost nearly as much as 8."""


class Filling:
    """Fills batches.

    Args:
        pace: how many rows a batch may have.
        n_prompt_outputs: rows of prompts and guesses that may have logits in a batch.
        drafts: guesses of a smaller model.
        promised: how many cells are promised to a sequence beyond its tokens; None where nothing may be guessed.
    """

    def __init__(
        self,
        pace: Pace,
        n_prompt_outputs: int,
        drafts: Drafts | None,
        promised: Callable[[Sequence], int] | None,
    ) -> None:
        self._pace = pace
        self._prompt_outputs = n_prompt_outputs
        self._drafts = drafts
        self._promised = promised
        self._prompts_turn = False

    def fill(self, batch: Batch, running: SequenceOf[Sequence]) -> None:
        """Add rows to an empty batch: those of answers, and beside them or in turn with them those of prompts."""
        few = _nearly_caught_up(running, batch.room)
        caught_up = set(few)
        prompts = [sequence for sequence in running if sequence not in caught_up]
        row_work = self._pace.costs.row_work
        works = (s.pending * row_work(s.computed, outputs=(not s.forced) / s.pending) for s in few)
        answers = Answers(len(few), sum(works))
        sooner = _sooner(prompts) if prompts else []
        reading = {"position": _next_position(prompts, sooner), "n_prompts": len(prompts)}
        n_left = sum(sequence.pending for sequence in prompts)
        n_apart = self._pace.rows_apart(min(batch.n_max, n_left), answers, **reading) if few and prompts else 0
        self._prompts_turn = n_apart > 0 and not self._prompts_turn
        if not self._prompts_turn:
            # Of the rows with logits, half are for prompts that want them, or guesses could keep them for ever.
            n_outputs = self._prompt_outputs // (1 + any(sequence.wants_prompt_logits for sequence in prompts))
            self._add_decodes(batch, few, answers, n_running=len(running), n_outputs=n_outputs)
        if prompts and (self._prompts_turn or not n_apart):
            n = n_apart or self._pace.prompt_rows(batch, answers, n_left, **reading)
            n_outputs = self._prompt_outputs - sum(part.sequence.n_guessed for part in batch.parts)
            _add_prompts(batch, _shares(prompts, sooner, n, n_outputs), whole=n >= self._pace.costs.tile > 0)

    def _add_decodes(
        self, batch: Batch, few: list[Sequence], answers: Answers, *, n_running: int, n_outputs: int
    ) -> None:
        """Add all pending rows of these sequences, and at most `n_outputs` guesses behind them."""
        for sequence in few:
            sequence.n_guessed = 0
        n_pending = sum(sequence.pending for sequence in few)
        room = min(batch.room - n_running - n_pending + len(few), n_outputs)
        if self._promised is not None:
            self._guess([sequence for sequence in few if sequence.n_generated], room, answers, self._promised)
        for sequence in few:
            batch.add(sequence, sequence.pending + sequence.n_guessed)

    def _guess(
        self, sequences: list[Sequence], room: int, answers: Answers, promised: Callable[[Sequence], int]
    ) -> None:
        """Let answers guess as many tokens as are worth their rows, within the cells that they were promised."""
        undecided, pace, work = [], self._pace, answers.work
        for sequence in sequences:
            most, row_work = min(MOST_GUESSED, room, promised(sequence)), pace.costs.row_work(sequence.computed)
            n = pace.worthwhile_guesses(sequence.guessable(most), row_work, work, answers)
            sequence.guess(n)
            room, work = room - n, work + n * row_work
            if n == 0 and sequence.request.speculate and not sequence.forced:
                undecided.append(sequence)
        if self._drafts is not None and undecided:
            most = min(room // len(undecided), *(promised(sequence) for sequence in undecided))
            self._drafts.guess(undecided, work, answers, most)


def _nearly_caught_up(running: SequenceOf[Sequence], room: int) -> list[Sequence]:
    """Return the sequences that are only a few tokens behind."""
    # One row is kept for each of those that come after.
    room -= len(running)
    few: list[Sequence] = []
    for sequence in running:
        n = sequence.pending
        if n == 1 or (n <= min(FEW, room + 1) and not sequence.wants_prompt_logits):
            few.append(sequence)
            room -= n - 1
    return few


def _sooner(prompts: list[Sequence]) -> list[Sequence]:
    """Return those that are read beside the oldest prompt, in order: much shorter or more urgent ones.

    So a short prompt does not wait for a long one before it. Of those that are about as long one comes after the other:
    read side by side they would all be done when the last one is.
    """
    oldest, *others = prompts

    def rank(sequence: Sequence) -> tuple[int, int]:
        return sequence.request.priority, sequence.pending

    priority, pending = rank(oldest)
    return sorted((other for other in others if rank(other) <= (priority, pending // MUCH_SHORTER)), key=rank)


def _next_position(prompts: list[Sequence], sooner: list[Sequence]) -> int:
    """Return where the prompts' next rows are, in the mean: that tells what they cost."""
    shares = _shares(prompts, sooner, NEXT_ROWS, NEXT_ROWS) if prompts else []
    return sum(n * sequence.computed for sequence, n in shares) // max(sum(n for _, n in shares), 1)


def _shares(prompts: list[Sequence], sooner: list[Sequence], room: int, n_outputs: int) -> list[tuple[Sequence, int]]:
    """Share rows out: half to the oldest prompt, so that it is not starved, or all if none is read beside it.

    Args:
        prompts: oldest first.
        sooner: of them, those that are read beside the oldest; see `_sooner`.
        room: rows of all.
        n_outputs: rows of those that want logits of their prompt.
    """
    oldest = prompts[0]
    shares = dict.fromkeys(prompts, 0)
    turns = [(oldest, room - room // 2)]
    turns += [(sequence, room) for sequence in [*sooner, *(prompt for prompt in prompts if prompt not in sooner)]]
    for sequence, most in turns:
        n = min(sequence.pending - shares[sequence], most, room)
        if sequence.wants_prompt_logits:
            n = min(n, n_outputs)
            n_outputs -= n
        shares[sequence] += n
        room -= n
    return list(shares.items())


def _add_prompts(batch: Batch, shares: list[tuple[Sequence, int]], *, whole: bool) -> None:
    """Add rows of prompts: `whole` tiles as they are, fewer in even parts."""
    for sequence, share in shares:
        n = share if whole else _even_part(sequence.pending, share, batch.n_rows)
        if n > 0:
            batch.add(sequence, n)


def _even_part(n: int, room: int, n_rows: int) -> int:
    """Return the first of the fewest parts of `n` that fit `room`, all about the same size.

    A step costs by the row: 40 tokens in a room of 32 are read as 20 + 20, which is the same work in shorter steps.
    On a CPU it costs by the group of rows, so that a part is rounded up to what fills the last one.
    """
    if n <= room or room <= 0:
        return min(n, max(room, 0))
    part = -(-n // -(-n // room))
    return min(part + -(part + n_rows) % ROW_GROUP, room)
