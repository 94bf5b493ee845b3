"""The engine thread and `step()`. `engine.py` has the event loop's side of it.

Everything that concerns tokens and memory is written here, or by what this thread owns. What is wanted of it comes as
messages in a queue; what it makes goes to the event loop, once for each step.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable

from llm_local.engine.backend import Backend, NoRoom, SideJob
from llm_local.engine.batch import Batch, Part
from llm_local.engine.constraint import ConstraintFailed
from llm_local.engine.drafts import Drafter
from llm_local.engine.host_cache import HostCache
from llm_local.engine.logprobs import prompt_logprobs
from llm_local.engine.messages import Cancel, FromDisk, Message, Pin, Stop, Submit
from llm_local.engine.pace import Pace
from llm_local.engine.scheduler import Scheduler
from llm_local.engine.sequence import Sequence
from llm_local.engine.stats import EngineStats, StatsLog
from llm_local.engine.step_costs import StepCosts
from llm_local.engine.step_time import StepTime
from llm_local.engine.stream import Receiver, Stream
from llm_local.engine.types import Delta, FinishReason
from llm_local.engine.writer import Writer
from llm_local.errors import DeadlineExceeded, DecodeFailed, Draining, EngineDead, LLMLocalError

log = logging.getLogger(__name__)

WAIT_FOR_DISK_S = 0.02
"""How long the thread sleeps at a time when all that it has to do waits for the disk."""

PROMPT_ROWS = 32
"""Rows from which on a batch tells how fast prompts are computed."""


class EngineThread:
    """Computes batches until it is told to stop; see `Engine` for the arguments.

    Attributes:
        error: what ended the thread before it was told to; None while it is well.
        scheduler, stats, step_time: the thread's own; their numbers may be read by any thread.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_running: int,
        window: int,
        answer_reserve: int,
        target_gap_s: float | None,
        prefill_chunk: int | None,
        host: HostCache | None,
        park_after: int | None,
        drafter: Drafter | None,
        side_job: SideJob | None,
        on_death: Callable[[], None],
    ) -> None:
        self.error: EngineDead | None = None
        self.stats = EngineStats()
        self.step_time = StepTime()
        self._stats_log = StatsLog(self.stats)
        self._costs = StepCosts(backend.row_costs, self.step_time)
        self._backend = backend
        self.scheduler = Scheduler(
            backend,
            max_running=max_running,
            window=window,
            pace=Pace(self._costs, target_gap_s=target_gap_s, prefill_chunk=prefill_chunk),
            answer_reserve=answer_reserve,
            host=host,
            park_after=park_after,
            drafter=drafter,
        )
        self._writer = Writer(backend, self.scheduler.settle, self.scheduler.forced_rows, self.stats)
        self._drafter = drafter
        self._side_job = side_job
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._outbox: list[tuple[Receiver, object]] = []
        if host is not None:
            host.connect(lambda report: self.put(FromDisk(report)), self.scheduler.cache.pins)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # -- any thread ---------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start; what is made will be delivered on this loop."""
        self._loop = loop
        self._thread.start()

    def put(self, message: Message) -> None:
        """Leave a message, to be taken in before the next step."""
        self._inbox.put(message)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; return whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- engine thread ------------------------------------------------------------------------------------------

    def post(self, receiver: Receiver, value: object) -> None:
        """Send a value to the loop at the end of this step."""
        self._outbox.append((receiver, value))

    def _run(self) -> None:
        try:
            while self.step():
                pass
        except BaseException as error:
            log.critical("the engine thread died", exc_info=error)
            self.error = EngineDead("The engine stopped after an internal error; the server is restarting.")
            # What ended before that has not failed.
            self._flush()
            self._on_loop(self._on_death)
        finally:
            self._close()

    def step(self) -> bool:
        """Take in what came, deliver the last step, compute one batch, sample. False when told to stop.

        Deltas go out just before what takes long: it gives the interpreter's lock to the event loop, which so writes to
        the clients while a batch is computed, and never holds up the thread between two batches.
        """
        if not self._drain_inbox():
            return False
        began = time.perf_counter()
        self._expire()
        batch = self.scheduler.schedule()
        self._flush()
        if batch:
            self._decode(batch)
            self.stats.steps += 1
            self.stats.rows += batch.n_rows
        if self._side_job is not None and self._side_job.pending:
            self._flush()
            self._side_job.step()
        self.stats.step_s += time.perf_counter() - began
        self._stats_log.look()
        return True

    def _drain_inbox(self) -> bool:
        idle = not (self.scheduler.running or (self._side_job and self._side_job.pending))
        # Sequences that wait while none runs wait for the disk.
        timeout = WAIT_FOR_DISK_S if self.scheduler.waiting else None
        block = idle and self._inbox.empty() and (timeout is None or self.scheduler.waits_for_disk)
        if block:
            self._flush()
        while True:
            try:
                message = self._inbox.get(block, timeout)
            except queue.Empty:
                return True
            block = False
            match message:
                case Submit(sequences):
                    for sequence in sequences:
                        self._add(sequence)
                case Cancel(stream):
                    self._cancel(stream)
                case Pin(prefixes):
                    for prefix in prefixes:
                        self.scheduler.cache.pin(prefix)
                case FromDisk(report):
                    self.scheduler.cache.parking.take(report)
                case Stop():
                    return False

    def _add(self, sequence: Sequence) -> None:
        """Queue a sequence, with what its constraint forces at once: that is computed with the prompt."""
        try:
            self._writer.begin(sequence)
        except ConstraintFailed as error:
            self._end(sequence, sequence.failed(error))
            return
        if sequence.done:
            delta = sequence.delta()
            assert delta is not None
            self._end(sequence, delta)
        else:
            self.scheduler.add(sequence)

    def _cancel(self, stream: Stream) -> None:
        gone = LLMLocalError("The client left.")
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            if sequence.stream is stream:
                self._end(sequence, sequence.failed(gone))

    def _expire(self) -> None:
        now = time.monotonic()
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            deadline = sequence.request.deadline
            if deadline is not None and now >= deadline:
                self._end(sequence, sequence.failed(DeadlineExceeded("The request's deadline passed.")))

    def _decode(self, batch: Batch) -> None:
        began = time.perf_counter()
        try:
            self._backend.decode(batch)
        except NoRoom:
            self._no_room()
            return
        except DecodeFailed as error:
            self._fail_batch(batch, error)
            return
        finally:
            took = time.perf_counter() - began
            self.stats.decode_s += took
        self._costs.note(batch, took)
        self.scheduler.computed(batch)
        for part in batch.parts:
            self._advance(part)
        if batch.n_rows >= PROMPT_ROWS:
            # Sampling is in it, as a GPU may be at work until then.
            self.scheduler.cache.parking.rates.computed.add(batch.n_rows, time.perf_counter() - began)

    def _no_room(self) -> None:
        """The native cache is fuller than the accounting says: drop what is idle, then fail the youngest."""
        if self.scheduler.cache.evict_idle():
            return
        youngest = self.scheduler.running[-1]
        self._end(youngest, youngest.failed(DecodeFailed("The KV cache has no room for this request.")))

    def _fail_batch(self, batch: Batch, error: DecodeFailed) -> None:
        log.error("a batch of %d rows failed: %s", batch.n_rows, error)
        for part in batch.parts:
            self.scheduler.forget(part.sequence)
            self._end(part.sequence, part.sequence.failed(error))

    def _advance(self, part: Part) -> None:
        """Sample the sequence's next token if the batch brought it up to date."""
        sequence = part.sequence
        if sequence.wants_prompt_logits:
            prompt_logprobs(sequence, part, self._backend)
        if sequence.pending > 0:
            if sequence.request.report_progress and sequence.first_token_at is None:
                self.post(sequence.stream, sequence.progress())
            return
        if sequence.first_token_at is None:
            sequence.first_token_at = time.monotonic()
        if sequence.request.max_tokens == 0:
            sequence.finish = FinishReason.LENGTH
        else:
            try:
                self._writer.write(sequence, part)
            except (ConstraintFailed, DecodeFailed) as error:
                if isinstance(error, DecodeFailed):
                    # What logits cannot be had of is nothing to go on from.
                    self.scheduler.forget(sequence)
                self._end(sequence, sequence.failed(error))
                return
        delta = sequence.delta()
        if sequence.done:
            assert delta is not None
            self._end(sequence, delta)
        elif delta is not None:
            self.post(sequence.stream, delta)

    def _end(self, sequence: Sequence, delta: Delta) -> None:
        self.scheduler.remove(sequence)
        sequence.close()
        self.post(sequence.stream, delta)

    def _flush(self) -> None:
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._on_loop(_deliver, outbox)

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            # The loop is closed: nobody is left to hear it.
            self._inbox.put(Stop())

    def _close(self) -> None:
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            sequence.close()
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, Submit):
                for sequence in message.sequences:
                    sequence.close()
        if self._side_job is not None:
            self._side_job.close(self.error or Draining("The server is shutting down."))
        self._flush()
        try:
            self.scheduler.cache.close(keep=self.error is None)
        finally:
            if self._drafter is not None:
                self._drafter.close()
            self._backend.close()


def _deliver(outbox: list[tuple[Receiver, object]]) -> None:
    for receiver, value in outbox:
        receiver.deliver(value)
