"""Decides which tokens are computed next. Engine thread.

There is no prefill phase and no decode phase: each sequence's `computed` catches up with its `length`. Here is who
runs, who waits and who steps back; `filling.py` says which rows of those that run are in a batch.
"""

from __future__ import annotations

import math
import time
from bisect import insort

from llm_local.engine.backend import Backend
from llm_local.engine.batch import Batch
from llm_local.engine.drafts import Drafter, Drafts
from llm_local.engine.filling import Filling
from llm_local.engine.host_cache import HostCache
from llm_local.engine.pace import Pace
from llm_local.engine.prefix_cache import PrefixCache
from llm_local.engine.radix_tree import Tokens, common_prefix
from llm_local.engine.sequence import NO_SLOT, Sequence

WAIT_FOR_PREFIX = 32
"""Waiting for another sequence to compute a common prefix must save this many tokens, or half of the rest."""

SURE_FORCED_ROWS = 2
"""Forced rows of a step where measured times must not decide: without logits, as long as a plain step or a bit more."""

PRIORITY_WORTH_S = 10.0
"""Seconds of waiting that one level of priority outweighs, so that nobody waits for ever behind more urgent ones."""


class Scheduler:
    """Sequences that wait and that run, both oldest (and most urgent) first.

    Args:
        backend: whose limits are kept.
        max_running: most sequences decoded together.
        window: most tokens of one sequence.
        pace: how many rows a batch may have.
        answer_reserve: tokens of an answer that are promised at admission.
        host, park_after: see `PrefixCache`.
        drafter: a smaller model that guesses.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_running: int,
        window: int,
        pace: Pace,
        answer_reserve: int,
        host: HostCache | None = None,
        park_after: int | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        host = host if backend.can_share else None
        self.cache = PrefixCache(backend, backend.n_slots, backend.n_ctx, window, host, park_after)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.n_preempted = 0
        self.n_outpaced = 0
        self.drafts: Drafts | None = None if drafter is None else Drafts(drafter, pace)
        self.waits_for_disk = False
        self._pace = pace
        self._spare_work: float | None = None
        self._batch = Batch(backend.n_batch, backend.row_costs.tile)
        self._max_running = max_running
        self._answer_reserve = answer_reserve
        self._can_share = backend.can_share
        # Every running sequence may end its prompt in the same batch, and then has one output each.
        n_prompt_outputs = backend.n_outputs - max_running
        promised = self._promised if backend.can_share else None
        self._filling = Filling(pace, n_prompt_outputs, self.drafts, promised)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those that are as urgent."""
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that is done or given up; what it computed stays resident."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> Batch:
        """Return the next batch: empty only when nothing runs."""
        self._batch.clear()
        self._spare_work = None
        self.cache.next_step()
        self._admit()
        # With nothing running, everybody else could start.
        self.waits_for_disk = bool(self.waiting) and not self.running
        self._grow()
        self._filling.fill(self._batch, self.running)
        if self.running and not self._batch:
            raise RuntimeError("sequences run, but none of them can be computed")
        self.cache.make_room(self._batch.n_rows)
        return self._batch

    def computed(self, batch: Batch) -> None:
        """Record that all rows of the batch are in the KV cache."""
        for part in batch.parts:
            sequence = part.sequence
            done = sequence.computed + part.n_rows
            self.cache.extend(self.cache.slots[sequence.slot], sequence.tokens[sequence.computed : done])
            sequence.computed = done

    def forced_rows(self, sequence: Sequence) -> int:
        """Return how many rows a sequence may have in the next batch, at least 1, while there is no choice for it.

        Rows of forced tokens need no logits, and together are quicker than one by one. But everybody who reads along
        waits for them: what they may add to the next batch is shared by all sequences that are forced.
        """
        if sequence.request.streamed and not sequence.request.speculate:
            return SURE_FORCED_ROWS
        costs = self._pace.costs
        if self._spare_work is None:
            answers = [other for other in self.running if other.first_token_at is not None]
            read = any(other.request.streamed for other in answers)
            work = sum(costs.row_work(other.computed) for other in answers)
            self._spare_work = self._pace.spare_work(work) if read else math.inf
        row_work = costs.row_work(sequence.computed, outputs=0.0)
        # Its own row is counted already, with logits.
        spare = self._spare_work + costs.row_work(sequence.computed)
        n = max(int(min(spare / row_work, len(sequence.tokens))), 1)
        self._spare_work = max(spare - n * row_work, 0.0)
        return n

    def settle(self, sequence: Sequence) -> None:
        """Forget what was computed of guesses that nothing confirmed, and learn from a draft."""
        if self.drafts is not None:
            self.drafts.note(*sequence.drafted_outcome())
        sequence.n_guessed = 0
        sequence.computed = min(sequence.computed, sequence.length)
        self.cache.trim(self.cache.slots[sequence.slot], sequence.computed)

    def preempt_youngest(self) -> Sequence:
        """Preempt the last running sequence for want of cells."""
        victim = self.running[-1]
        self._preempt(victim)
        self.n_preempted += 1
        return victim

    def _preempt(self, victim: Sequence) -> None:
        """Put a running sequence back in line with all that it has; only its KV may be computed again."""
        self.running.remove(victim)
        self._release(victim)
        victim.sampler.leave()
        victim.computed = 0
        self.add(victim)

    def forget(self, sequence: Sequence) -> None:
        """Drop what the sequence has in the KV cache, which is not known to be right any more."""
        self.cache.drop(self.cache.slots[sequence.slot])

    def _release(self, sequence: Sequence) -> None:
        slot = self.cache.slots[sequence.slot]
        if not self._can_share:
            self.cache.trim(slot, 0)
        self.cache.release(slot)
        sequence.slot = NO_SLOT

    def _admit(self) -> None:
        blocked = False
        for sequence in list(self.waiting):
            # Behind one that cannot start only those go on that another makes way for.
            if blocked and sequence.request.priority >= self._least_urgent():
                continue
            if self._waits_for_prefix(sequence) or self._waits_for_disk(sequence):
                continue
            if (not blocked and self._start(sequence)) or self._start_urgent(sequence):
                self.waiting.remove(sequence)
            else:
                blocked = True

    def _least_urgent(self) -> int:
        return max((sequence.request.priority for sequence in self.running), default=0)

    def _start_urgent(self, sequence: Sequence) -> bool:
        """Start a sequence in place of less urgent ones, the youngest of the least urgent first.

        Nobody steps back for one that could not start even then. One that stepped back is not asked again for a while,
        so that a flow of urgent ones does not stop it.
        """
        now = time.monotonic()
        less_urgent = [
            other
            for other in self.running
            if other.request.priority > sequence.request.priority and now >= other.left_alone_until
        ]
        wanted, shareable, reserve = self._wants(sequence)
        leaving = {other.slot for other in less_urgent}
        if not less_urgent or not self.cache.has_room(wanted, shareable, reserve, leaving):
            return False
        for victim in sorted(less_urgent, key=lambda other: (-other.request.priority, -other.submitted_at)):
            victim.left_alone_until = now + PRIORITY_WORTH_S
            self._preempt(victim)
            self.n_outpaced += 1
            if self._start(sequence):
                return True
        return False

    def _wants(self, sequence: Sequence) -> tuple[Tokens, int, int]:
        """Return the tokens of a sequence, how many may come from the cache, and the positions that it is promised."""
        reserve = min(sequence.length + self._answer_reserve, len(sequence.tokens))
        return sequence.tokens[: sequence.length], sequence.shareable if self._can_share else 0, reserve

    def _start(self, sequence: Sequence) -> bool:
        if len(self.running) >= self._max_running:
            return False
        acquired = self.cache.acquire(*self._wants(sequence))
        if acquired is None:
            return False
        slot, common = acquired
        sequence.slot, sequence.held_by = slot.id, None
        sequence.sampler.enter(slot.id, freely=sequence.is_sampled_freely)
        sequence.started(common)
        insort(self.running, sequence, key=_order)
        return True

    def _waits_for_prefix(self, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute a prefix that is worth waiting for."""
        if sequence.held_by is not None:
            other, common = sequence.held_by
            if other.slot != NO_SLOT and other.computed < common:
                return True
            sequence.held_by = None
        if not self._can_share or sequence.shareable == 0:
            return False
        sequence.held_by = self._upcoming_prefix(sequence)
        return sequence.held_by is not None

    def _waits_for_disk(self, sequence: Sequence) -> bool:
        """Whether a prefix is on its way from the disk; others go on meanwhile."""
        return self._can_share and self.cache.fetching(sequence.tokens[: sequence.shareable])

    def _upcoming_prefix(self, sequence: Sequence) -> tuple[Sequence, int] | None:
        wanted = sequence.tokens[: sequence.shareable]
        reading = [other for other in self.running if other.pending > 1]
        candidates = [(common_prefix(other.tokens[: other.length], wanted), other) for other in reading]
        candidates = [(common, other) for common, other in candidates if other.computed < common]
        if not candidates:
            return None
        common, other = max(candidates, key=lambda candidate: candidate[0])
        have = self.cache.match(wanted)[1]
        saved = common - have
        if saved >= WAIT_FOR_PREFIX or 2 * saved >= sequence.length - have > 1:
            return other, common
        return None

    def _grow(self) -> None:
        for sequence in list(self.running):
            if sequence.slot != NO_SLOT:
                self._has_cells(sequence)

    def _promised(self, sequence: Sequence) -> int:
        """Return how many cells are promised to a sequence beyond its tokens."""
        return self.cache.slots[sequence.slot].reserved - sequence.length

    def _has_cells(self, sequence: Sequence) -> bool:
        """Grow the sequence's reserve when it is used up, at the cost of the youngest; False if that is itself."""
        slot = self.cache.slots[sequence.slot]
        if sequence.length <= slot.reserved:
            return True
        reserve = min(sequence.length + self._answer_reserve, len(sequence.tokens))
        while not self.cache.grow(slot, reserve):
            if self.preempt_youngest() is sequence:
                return False
        return True


def _order(sequence: Sequence) -> tuple[float, int]:
    return sequence.submitted_at + PRIORITY_WORTH_S * sequence.request.priority, sequence.index
