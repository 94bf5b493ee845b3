"""The event loop's side of the engine: requests go in, streams of deltas come out. Event loop only, unless said.

Two thread crossings per request and no locks. In: a queue. Out: one `call_soon_threadsafe` per step, carrying every
delta of that step. Whatever is counted or looked up on the loop (open streams, the queue's limit) is written only
here; whatever concerns tokens and memory only on the engine thread (`engine_thread.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from llm_local.engine.admission import Admission
from llm_local.engine.backend import Backend, Sampler, SideJob
from llm_local.engine.cells import CellCount
from llm_local.engine.constraint import Constraint
from llm_local.engine.drafts import Drafter
from llm_local.engine.engine_thread import EngineThread
from llm_local.engine.host_cache import HostCache
from llm_local.engine.messages import Cancel, Pin, Stop, Submit, Wake
from llm_local.engine.parking import TierBytes
from llm_local.engine.radix_tree import Tokens
from llm_local.engine.sequence import Sequence
from llm_local.engine.stats import EngineStats
from llm_local.engine.step_time import StepTime
from llm_local.engine.stream import Receiver, Stream
from llm_local.engine.types import GenerationRequest, Usage
from llm_local.errors import Draining, LLMLocalError

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 30.0


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
        self._backend = backend
        self._draining: Draining | None = None
        self._streams: set[Stream] = set()
        self._on_death = on_death
        self._thread = EngineThread(
            backend,
            max_running=max_running,
            window=window,
            answer_reserve=answer_reserve,
            target_gap_s=target_gap_s,
            prefill_chunk=prefill_chunk,
            host=host,
            park_after=park_after,
            drafter=drafter,
            side_job=side_job,
            on_death=self._died,
        )

    @property
    def unavailable(self) -> LLMLocalError | None:
        """What a new request is answered with once nothing is taken any more."""
        return self._thread.error or self._draining

    def start(self) -> None:
        """Start the thread; deltas will be delivered on the running event loop."""
        self._thread.start(asyncio.get_running_loop())

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
        self._thread.put(Submit(sequences))
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
            self._thread.put(Cancel(stream))

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

    @property
    def stats(self) -> EngineStats:
        """Counters that the engine thread keeps (any thread)."""
        return self._thread.stats

    @property
    def step_time(self) -> StepTime:
        """How long steps take; what is known of it before the start is noted here."""
        return self._thread.step_time

    def post(self, receiver: Receiver, value: object) -> None:
        """Send a value to the loop at the end of this step. Engine thread only."""
        self._thread.post(receiver, value)

    def kv_bytes(self) -> TierBytes:
        """Return what each tier of the KV holds now (numbers that the engine thread keeps; any thread)."""
        return self._thread.scheduler.cache.parking.kv_bytes()

    def cell_count(self) -> CellCount:
        """Return what the KV cells are for now (any thread)."""
        return self._thread.scheduler.cache.cell_count()

    @property
    def n_running(self) -> int:
        """Sequences that have a slot now (any thread)."""
        return len(self._thread.scheduler.running)

    @property
    def n_preempted(self) -> int:
        """Sequences that had to step back for want of cells, since the start (any thread)."""
        return self._thread.scheduler.n_preempted

    @property
    def n_outpaced(self) -> int:
        """Sequences that made way for a more urgent one, since the start (any thread)."""
        return self._thread.scheduler.n_outpaced

    def wake(self) -> None:
        """Let an idle engine thread look at its side job."""
        self._thread.put(Wake())

    def pin(self, prefixes: list[Tokens]) -> None:
        """Let these prefixes be evicted last, once they were computed."""
        self._thread.put(Pin(prefixes))

    def drain(self) -> None:
        """Refuse new requests from now on; what runs goes on."""
        if self.unavailable is None:
            self._draining = Draining("The server is shutting down.", retry_after_s=5)

    async def stop(self) -> bool:
        """End the thread, fail what is left and free native memory. Harmless when it has ended.

        Returns:
            Whether the thread ended. If not, it still computes, and the weights must not be freed.
        """
        self.drain()
        self._thread.put(Stop())
        ended = await asyncio.get_running_loop().run_in_executor(None, self._thread.join, JOIN_TIMEOUT_S)
        if not ended:
            log.error("the engine thread did not end within %.0f s; its memory is left to the system", JOIN_TIMEOUT_S)
        self._fail_streams()
        return ended

    def _fail_streams(self) -> None:
        assert self.unavailable is not None
        for stream in list(self._streams):
            stream.fail(self.unavailable)
        self._streams.clear()

    def _died(self) -> None:
        self._fail_streams()
        if self._on_death is not None:
            self._on_death()


def _close_all(things: SequenceOf[Sampler | Constraint]) -> None:
    for thing in things:
        thing.close()
