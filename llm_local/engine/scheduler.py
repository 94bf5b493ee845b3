"""Decides which tokens are computed next. Engine thread.

There is no prefill phase and no decode phase: each sequence's `computed` catches up with its `length`. A batch has
the rows of every sequence that is only a few tokens behind (the one that was sampled and those that a constraint
forced after it), and the rest of its room goes to prompts, oldest first.
"""

from __future__ import annotations

from bisect import insort

from llm_local.engine.backend import Backend
from llm_local.engine.batch import Batch
from llm_local.engine.host_cache import HostCache
from llm_local.engine.prefix_cache import PrefixCache
from llm_local.engine.radix_tree import common_prefix
from llm_local.engine.sequence import NO_SLOT, Sequence

WAIT_FOR_PREFIX = 32
"""Waiting for another sequence to compute a common prefix must save this many tokens, or half of the rest."""


FEW = 12
"""A sequence so many tokens behind catches up at once; more are read in parts, like a prompt."""

ROW_GROUP = 4
"""Rows that the CPU's matrix kernels compute together: of 4, 5 and 8 rows, 5 cost nearly as much as 8."""


class Scheduler:
    """Sequences that wait and that run, both oldest (and most urgent) first.

    Args:
        backend: whose limits are kept.
        max_running: most sequences decoded together.
        window: most tokens of one sequence.
        prefill_chunk: most prompt rows of a batch in which running answers have rows.
        answer_reserve: tokens of an answer that are promised at admission.
        host, park_after: see `PrefixCache`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_running: int,
        window: int,
        prefill_chunk: int,
        answer_reserve: int,
        host: HostCache | None = None,
        park_after: int | None = None,
    ) -> None:
        host = host if backend.can_share else None
        self.cache = PrefixCache(backend, backend.n_slots, backend.n_ctx, window, host, park_after)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.n_preempted = 0
        self.waits_for_disk = False
        self._batch = Batch(backend.n_batch)
        self._max_running = max_running
        self._prefill_chunk = prefill_chunk
        self._answer_reserve = answer_reserve
        self._can_share = backend.can_share
        # Every running sequence may end its prompt in the same batch, and then has one output each.
        self._prompt_outputs = backend.n_outputs - max_running

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
        self.cache.next_step()
        self._admit()
        # With nothing running, everybody else could start.
        self.waits_for_disk = bool(self.waiting) and not self.running
        self._grow()
        self._add_decodes()
        self._add_prompts()
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

    def preempt_youngest(self) -> Sequence:
        """Put the last running sequence back in line with all that it has; only its KV may be computed again."""
        victim = self.running.pop()
        self._release(victim)
        victim.computed = 0
        self.add(victim)
        self.n_preempted += 1
        return victim

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
        at = 0
        while at < len(self.waiting) and len(self.running) < self._max_running:
            sequence = self.waiting[at]
            if self._waits_for_prefix(sequence) or self._waits_for_disk(sequence):
                at += 1
                continue
            if not self._start(sequence):
                break
            del self.waiting[at]

    def _start(self, sequence: Sequence) -> bool:
        reserve = min(sequence.length + self._answer_reserve, len(sequence.tokens))
        shareable = sequence.shareable if self._can_share else 0
        acquired = self.cache.acquire(sequence.tokens[: sequence.length], shareable, reserve)
        if acquired is None:
            return False
        slot, common = acquired
        sequence.slot, sequence.held_by = slot.id, None
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

    def _add_decodes(self) -> None:
        # One row is kept for each of those that come after.
        room = self._batch.room - len(self.running)
        for sequence in self.running:
            n = sequence.pending
            if n == 1 or (n <= min(FEW, room + 1) and not sequence.wants_prompt_logits):
                self._batch.add(sequence, n)
                room -= n - 1

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

    def _add_prompts(self) -> None:
        batch = self._batch
        room = min(batch.room, self._prefill_chunk) if batch else batch.room
        outputs = self._prompt_outputs
        caught_up = {part.sequence for part in batch.parts}
        for sequence in self.running:
            n = _even_part(sequence.pending, room, batch.n_rows)
            if sequence.wants_prompt_logits:
                n = min(n, outputs)
            if n > 0 and sequence not in caught_up:
                batch.add(sequence, n)
                room -= n
                outputs -= n if sequence.wants_prompt_logits else 0


def _even_part(n: int, room: int, n_rows: int) -> int:
    """Return the first of the fewest parts of `n` that fit `room`, all about the same size.

    A step costs by the row: 40 tokens in a room of 32 are read as 20 + 20, which is the same work in shorter steps.
    On a CPU it costs by the group of rows, so that a part is rounded up to what fills the last one.
    """
    if n <= room or room <= 0:
        return min(n, max(room, 0))
    part = -(-n // -(-n // room))
    return min(part + -(part + n_rows) % ROW_GROUP, room)


def _order(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.request.priority, sequence.submitted_at, sequence.index
