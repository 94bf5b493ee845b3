"""The engine thread and `step()`. `stream.py` has the end of it that the event loop holds.

Two thread crossings per request and no locks. In: a queue. Out: one `call_soon_threadsafe` per step, carrying every
delta of that step. Whatever is counted or looked up on the loop (open streams, the queue's limit) is written only
there; whatever concerns tokens and memory only on the engine thread.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from llm_local.engine.admission import Admission
from llm_local.engine.backend import Backend, NoRoom, Sampler, SideJob
from llm_local.engine.batch import Batch, Part
from llm_local.engine.constraint import Constraint, ConstraintFailed
from llm_local.engine.disk_worker import Report
from llm_local.engine.drafts import Drafter
from llm_local.engine.host_cache import HostCache
from llm_local.engine.logprobs import prompt_logprobs
from llm_local.engine.pace import Pace
from llm_local.engine.prefix_cache import CellCount, TierBytes
from llm_local.engine.radix_tree import Tokens
from llm_local.engine.scheduler import Scheduler
from llm_local.engine.sequence import Sequence
from llm_local.engine.stats import EngineStats, StatsLog
from llm_local.engine.step_costs import StepCosts
from llm_local.engine.step_time import StepTime
from llm_local.engine.stream import Receiver, Stream
from llm_local.engine.types import Delta, FinishReason, GenerationRequest, Usage
from llm_local.engine.writer import Writer
from llm_local.errors import DeadlineExceeded, DecodeFailed, Draining, EngineDead, LLMLocalError

log = logging.getLogger(__name__)


JOIN_TIMEOUT_S = 30.0

WAIT_FOR_DISK_S = 0.02
"""How long the thread sleeps at a time when all that it has to do waits for the disk."""

PROMPT_ROWS = 32
"""Rows from which on a batch tells how fast prompts are computed."""


@dataclass(frozen=True, slots=True)
class _Submit:
    sequences: list[Sequence]


@dataclass(frozen=True, slots=True)
class _Cancel:
    stream: Stream


@dataclass(frozen=True, slots=True)
class _Pin:
    prefixes: list[Tokens]


@dataclass(frozen=True, slots=True)
class _FromDisk:
    report: Report


class _Stop:
    pass


class _Wake:
    pass


class Engine:
    """Runs sequences on a backend.

    Args:
        backend: what computes; closed by the engine.
        max_running: most sequences decoded together.
        queue_max: most sequences that wait beside them; one more is refused.
        window: most tokens of one sequence, prompt and answer.
        target_gap_s, prefill_chunk: how long a step, or how many prompt rows, may be while answers run; see `Pace`.
        answer_reserve: tokens of an answer that are promised at admission.
        host, park_after: where idle sequences go, and after how many steps; see `PrefixCache`.
        drafter: a smaller model that guesses; closed by the engine.
        side_job: other work for this thread.
        on_death: called on the event loop when the engine thread has ended with an error.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_running: int,
        queue_max: int,
        window: int,
        answer_reserve: int,
        target_gap_s: float | None = None,
        prefill_chunk: int | None = None,
        host: HostCache | None = None,
        park_after: int | None = None,
        drafter: Drafter | None = None,
        side_job: SideJob | None = None,
        on_death: Callable[[], None] | None = None,
    ) -> None:
        self.window = window
        self.max_running = max_running
        self._admission = Admission(max_running, queue_max)
        self.stats = EngineStats()
        self._stats_log = StatsLog(self.stats)
        self.unavailable: LLMLocalError | None = None
        self.step_time = StepTime()
        self._costs = StepCosts(backend.row_costs, self.step_time)
        self._backend = backend
        self._scheduler = Scheduler(
            backend,
            max_running=max_running,
            window=window,
            pace=Pace(
                self._costs,
                target_gap_s=target_gap_s,
                prefill_chunk=prefill_chunk,
            ),
            answer_reserve=answer_reserve,
            host=host,
            park_after=park_after,
            drafter=drafter,
        )
        self._writer = Writer(backend, self._scheduler.settle, self.stats)
        self._drafter = drafter
        self._side_job = side_job
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[_Submit | _Cancel | _Pin | _FromDisk | _Stop | _Wake] = queue.SimpleQueue()
        self._outbox: list[tuple[Receiver, object]] = []
        if host is not None:
            host.connect(lambda report: self._inbox.put(_FromDisk(report)), self._scheduler.cache.pins)
        self._streams: set[Stream] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # -- event loop ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; deltas will be delivered on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def new_samplers(self, requests: SequenceOf[GenerationRequest]) -> list[Sampler]:
        """Build the samplers of a request, which may take long (DRY, over a large vocabulary). Any thread."""
        samplers: list[Sampler] = []
        try:
            for request in requests:
                samplers.append(self._backend.new_sampler(request.params, request.prompt))
        except BaseException:
            _close_all(samplers)
            raise
        return samplers

    def submit(
        self,
        requests: SequenceOf[GenerationRequest],
        samplers: list[Sampler] | None = None,
        constraints: SequenceOf[Constraint] = (),
    ) -> Stream:
        """Queue the sequences of one request.

        Args:
            requests: one for each sequence.
            samplers: from `new_samplers`; built here when not given. They are closed by the engine in any case.
            constraints: one for each sequence, or none at all; closed by the engine in any case.

        Raises:
            QueueFull: too many wait already, or for longer than this request's deadline.
            EngineDead, Draining: nothing is taken any more.
        """
        try:
            self.check_room(requests)
        except LLMLocalError:
            _close_all([*(samplers or []), *constraints])
            raise
        stream = Stream(self, len(requests), requests[0].priority)
        samplers = self.new_samplers(requests) if samplers is None else samplers
        of_each: SequenceOf[Constraint | None] = constraints or [None] * len(requests)
        sequences = [
            Sequence(request, index, stream, sampler, constraint)
            for index, (request, sampler, constraint) in enumerate(zip(requests, samplers, of_each, strict=True))
        ]
        self._admission.entered(stream.priority, len(sequences))
        self._streams.add(stream)
        self._inbox.put(_Submit(sequences))
        return stream

    def check_room(self, requests: SequenceOf[GenerationRequest]) -> None:
        """Raise what a request of these sequences must be answered with, if it cannot be taken."""
        self.check_available()
        self._admission.check(requests)

    def check_available(self) -> None:
        """Raise what a new request must be answered with, if nothing is taken any more."""
        if self.unavailable is not None:
            raise self.unavailable

    def forget(self, stream: Stream, *, cancel: bool) -> None:
        """Drop a stream; with `cancel`, free its sequences at the next step."""
        self._streams.discard(stream)
        if cancel:
            self._inbox.put(_Cancel(stream))

    def sequence_ended(self, priority: int, usage: Usage | None) -> None:
        """Count a sequence out (called by its stream)."""
        self._admission.ended(priority, usage)

    @property
    def n_open(self) -> int:
        """Sequences that run or wait."""
        return self._admission.n_open

    @property
    def capacity(self) -> int:
        """Most sequences that may run or wait."""
        return self._admission.capacity

    def kv_bytes(self) -> TierBytes:
        """Return what each tier of the KV holds now (numbers that the engine thread keeps; any thread)."""
        return self._scheduler.cache.kv_bytes()

    def cell_count(self) -> CellCount:
        """Return what the KV cells are for now (any thread)."""
        return self._scheduler.cache.cell_count()

    @property
    def n_running(self) -> int:
        """Sequences that have a slot now (any thread)."""
        return len(self._scheduler.running)

    @property
    def n_preempted(self) -> int:
        """Sequences that had to step back for want of cells, since the start (any thread)."""
        return self._scheduler.n_preempted

    @property
    def n_outpaced(self) -> int:
        """Sequences that made way for a more urgent one, since the start (any thread)."""
        return self._scheduler.n_outpaced

    def wake(self) -> None:
        """Let an idle engine thread look at its side job."""
        self._inbox.put(_Wake())

    def pin(self, prefixes: list[Tokens]) -> None:
        """Let these prefixes be evicted last, once they were computed."""
        self._inbox.put(_Pin(prefixes))

    def drain(self) -> None:
        """Refuse new requests from now on; what runs goes on."""
        if self.unavailable is None:
            self.unavailable = Draining("The server is shutting down.", retry_after_s=5)

    async def stop(self) -> bool:
        """End the thread, fail what is left and free native memory. Harmless when it has ended.

        Returns:
            Whether the thread ended. If not, it still computes, and the weights must not be freed.
        """
        self.drain()
        self._inbox.put(_Stop())
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("the engine thread did not end within %.0f s; its memory is left to the system", JOIN_TIMEOUT_S)
        self._fail_streams()
        return not self._thread.is_alive()

    def _fail_streams(self) -> None:
        assert self.unavailable is not None
        for stream in list(self._streams):
            stream.fail(self.unavailable)
        self._streams.clear()

    def _deliver(self, outbox: list[tuple[Receiver, object]]) -> None:
        for receiver, value in outbox:
            receiver.deliver(value)

    def _died(self) -> None:
        self._fail_streams()
        if self._on_death is not None:
            self._on_death()

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
            self.unavailable = EngineDead("The engine stopped after an internal error; the server is restarting.")
            self._on_loop(self._died)
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
        batch = self._scheduler.schedule()
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
        idle = not (self._scheduler.running or (self._side_job and self._side_job.pending))
        # Sequences that wait while none runs wait for the disk.
        timeout = WAIT_FOR_DISK_S if self._scheduler.waiting else None
        block = idle and self._inbox.empty() and (timeout is None or self._scheduler.waits_for_disk)
        if block:
            self._flush()
        while True:
            try:
                message = self._inbox.get(block, timeout)
            except queue.Empty:
                return True
            block = False
            match message:
                case _Submit(sequences):
                    for sequence in sequences:
                        self._add(sequence)
                case _Cancel(stream):
                    self._cancel(stream)
                case _Pin(prefixes):
                    for prefix in prefixes:
                        self._scheduler.cache.pin(prefix)
                case _FromDisk(report):
                    self._scheduler.cache.take(report)
                case _Stop():
                    return False

    def _add(self, sequence: Sequence) -> None:
        """Queue a sequence, with what its constraint forces at once: that is computed with the prompt."""
        try:
            self._writer.force(sequence)
        except ConstraintFailed as error:
            self._end(sequence, sequence.failed(error))
            return
        if sequence.done:
            delta = sequence.delta()
            assert delta is not None
            self._end(sequence, delta)
        else:
            self._scheduler.add(sequence)

    def _cancel(self, stream: Stream) -> None:
        gone = LLMLocalError("The client left.")
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if sequence.stream is stream:
                self._end(sequence, sequence.failed(gone))

    def _expire(self) -> None:
        now = time.monotonic()
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
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
        self._scheduler.computed(batch)
        for part in batch.parts:
            self._advance(part)
        if batch.n_rows >= PROMPT_ROWS:
            # Sampling is in it, as a GPU may be at work until then.
            self._scheduler.cache.rates.computed.add(batch.n_rows, time.perf_counter() - began)

    def _no_room(self) -> None:
        """The native cache is fuller than the accounting says: drop what is idle, then fail the youngest."""
        if self._scheduler.cache.evict_idle():
            return
        youngest = self._scheduler.running[-1]
        self._end(youngest, youngest.failed(DecodeFailed("The KV cache has no room for this request.")))

    def _fail_batch(self, batch: Batch, error: DecodeFailed) -> None:
        log.error("a batch of %d rows failed: %s", batch.n_rows, error)
        for part in batch.parts:
            self._scheduler.forget(part.sequence)
            self._end(part.sequence, part.sequence.failed(error))

    def _advance(self, part: Part) -> None:
        """Sample the sequence's next token if the batch brought it up to date."""
        sequence = part.sequence
        if sequence.wants_prompt_logits:
            prompt_logprobs(sequence, part, self._backend)
        if sequence.pending > 0:
            if sequence.request.report_progress:
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
                self._end(sequence, sequence.failed(error))
                return
        delta = sequence.delta()
        if sequence.done:
            assert delta is not None
            self._end(sequence, delta)
        elif delta is not None:
            self.post(sequence.stream, delta)

    def _end(self, sequence: Sequence, delta: Delta) -> None:
        self._scheduler.remove(sequence)
        sequence.close()
        self.post(sequence.stream, delta)

    def _flush(self) -> None:
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._on_loop(self._deliver, outbox)

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            # The loop is closed: nobody is left to hear it.
            self._inbox.put(_Stop())

    def _close(self) -> None:
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            sequence.close()
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, _Submit):
                for sequence in message.sequences:
                    sequence.close()
        if self._side_job is not None:
            self._side_job.close(self.unavailable or Draining("The server is shutting down."))
        self._flush()
        try:
            self._scheduler.cache.close(keep=not isinstance(self.unavailable, EngineDead))
        finally:
            if self._drafter is not None:
                self._drafter.close()
            self._backend.close()


def _close_all(things: SequenceOf[Sampler | Constraint]) -> None:
    for thing in things:
        thing.close()
