"""Embeddings from a second context, computed by the engine thread in bounded pieces between its steps.

A causal model is read in chunks, and its token vectors are pooled here, so that a long input stalls nobody. A model
that looks both ways (BERT, nomic) needs a whole input in one pass; there llama.cpp pools.
"""

from __future__ import annotations

import asyncio
import logging
import queue
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

from llm_local.engine.types import Token
from llm_local.errors import DecodeFailed, LLMLocalError, StartupError, Unavailable
from llm_local.llama.backend import new_context
from llm_local.llama.model import LlamaModel
from llm_local.llama.native_batch import NativeBatch
from llm_local.llama.pooling import NATIVE_POOLING, Pooling, Sum, Vector, gguf_pooling, normalized, pooled
from llm_local.llama.threads import ContextThreads

log = logging.getLogger("llm_local")

CHUNK_ROWS = 64
"""Rows of a causal model per step. llama.cpp computes logits for each of them, too: 64 x 152k floats are 39 MB."""

ENCODER_ROWS = 512
"""Rows of a two-way model per step, unless a single input is longer."""

ENCODER_ROWS_ON_CPU = 192
"""More are no faster there (docs/performance.md), and whoever chats meanwhile waits for the end of a step."""

N_SLOTS = 16
"""Inputs in one batch."""

NO_MEMORY_RETRY_S = 30


class EmbeddingJob:
    """The inputs of one request, and the future of their vectors. Created on the event loop."""

    def __init__(self, inputs: SequenceOf[SequenceOf[Token]]) -> None:
        self.result: asyncio.Future[list[Vector]] = asyncio.get_running_loop().create_future()
        self.inputs = [_Input(self, list(tokens)) for tokens in inputs]
        self.n_open = len(self.inputs)

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more (read by the engine thread)."""
        return self.result.cancelled()

    def deliver(self, value: object) -> None:
        """Take the vectors, or the error, from the engine thread."""
        if self.result.done():
            return
        if isinstance(value, LLMLocalError):
            self.result.set_exception(value)
        else:
            assert isinstance(value, list)
            self.result.set_result(value)


@dataclass(slots=True, eq=False)
class _Input:
    job: EmbeddingJob
    tokens: list[Token]
    computed: int = 0
    slot: int = -1
    pooled: Sum | None = None
    vector: Vector | None = field(default=None)


@dataclass(slots=True)
class _Part:
    input: _Input
    first: int
    n_rows: int


class Embedder:
    """`engine.SideJob` that embeds token lists.

    Args:
        model: the weights, shared with the generation context or of their own.
        window: most tokens of one input.
        n_threads: most CPU threads.
        pooling: None takes what the GGUF says, else the mean.
        owns_model: close the model at the end.
        at_once: create the context now, not at the first request.

    Raises:
        StartupError: there is no memory for the context.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        window: int,
        n_threads: int,
        pooling: Pooling | None = None,
        owns_model: bool = False,
        at_once: bool = True,
    ) -> None:
        self.model = model
        self.window = window
        self.pooling = pooling or gguf_pooling(model)
        self._owns_model = owns_model
        self._chunked = model.is_causal
        self._budget = CHUNK_ROWS if self._chunked else ENCODER_ROWS if model.on_gpu else ENCODER_ROWS_ON_CPU
        self._n_rows = min(self._budget, window) if self._chunked else max(self._budget, window)
        self._n_threads = n_threads
        self._context: Any = None
        if at_once:
            self._open()
        self._batch = NativeBatch(self._n_rows)
        self._inbox: queue.SimpleQueue[_Input] = queue.SimpleQueue()
        self._waiting: deque[_Input] = deque()
        self._active: list[_Input] = []
        self._free_slots = list(range(N_SLOTS))
        self._n_cells = window
        self._wake: Callable[[], None] = lambda: None
        self._post: Callable[[EmbeddingJob, object], None] = lambda job, value: None
        self.dead: LLMLocalError | None = None

    @property
    def n_embd(self) -> int:
        """Length of a vector."""
        return self.model.n_embd

    def connect(self, wake: Callable[[], None], post: Callable[[EmbeddingJob, object], None]) -> None:
        """Say how to wake the engine thread, and how it sends a value to the event loop."""
        self._wake, self._post = wake, post

    async def embed(self, inputs: SequenceOf[SequenceOf[Token]]) -> list[Vector]:
        """Return one L2-normalised float32 vector [n_embd] for each token list (1 to `window` tokens). Event loop.

        Raises:
            DecodeFailed: llama.cpp could not compute a batch.
            Unavailable: there is no memory for the context now.
            EngineDead, Draining: the engine has ended.
        """
        job = EmbeddingJob(inputs)
        for item in job.inputs:
            self._inbox.put(item)
        self._wake()
        # `close` sets `dead` before it empties the inbox for the last time: one of the two sees the job.
        if self.dead is not None:
            raise self.dead
        return await job.result

    # -- engine thread ------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there is something to do."""
        return bool(self._active or self._waiting or not self._inbox.empty())

    def step(self) -> None:
        """Compute one batch."""
        while not self._inbox.empty():
            self._waiting.append(self._inbox.get())
        self._drop_abandoned()
        if self._context is None and not self._could_open():
            return
        self._admit()
        parts = self._fill()
        if not parts:
            return
        self._threads.settle()
        code = llama_cpp.llama_decode(self._context, self._batch.native)
        if code != 0:
            error = DecodeFailed(f"The model could not embed this batch (llama_decode returned {code}).")
            self._fail({part.input.job for part in parts}, error)
            return
        for part in parts:
            self._collect(part)

    def close(self, error: LLMLocalError) -> None:
        """Fail what is left and free the context."""
        self.dead = error
        while not self._inbox.empty():
            self._waiting.append(self._inbox.get())
        for job in {item.job for item in [*self._active, *self._waiting]}:
            self._post(job, error)
        self._active.clear()
        self._waiting.clear()
        if self._context is not None:
            llama_cpp.llama_free(self._context)
            self._context = None
            if self._owns_model:
                self.model.close()

    def _params(self, n_threads: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.window if self._chunked else self._n_rows
        params.n_batch = params.n_ubatch = self._n_rows
        params.n_seq_max = N_SLOTS
        params.n_outputs_max = max(self._n_rows, N_SLOTS)
        params.n_threads = params.n_threads_batch = n_threads
        params.embeddings = True
        params.kv_unified = True
        params.no_perf = True
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE if self._chunked else NATIVE_POOLING[self.pooling]
        return params

    def _open(self) -> None:
        self._context = new_context(self.model, self._params(self._n_threads), "embedding", "LLM_EMBEDDING_CTX")
        self._threads = ContextThreads(self._context, self._n_threads)
        self._memory = llama_cpp.llama_get_memory(self._context) if self._chunked else None

    def _could_open(self) -> bool:
        """Create the context if somebody waits for it; fail those who wait where it cannot be."""
        if not self._waiting:
            return False
        try:
            self._open()
        except StartupError as error:
            log.error("%s", error)
            nothing = Unavailable("There is no memory for embeddings now.", retry_after_s=NO_MEMORY_RETRY_S)
            self._fail({item.job for item in self._waiting}, nothing)
            return False
        return True

    def _drop_abandoned(self) -> None:
        for item in [item for item in self._active if item.job.abandoned]:
            self._leave(item)
        if any(item.job.abandoned for item in self._waiting):
            self._waiting = deque(item for item in self._waiting if not item.job.abandoned)

    def _admit(self) -> None:
        while self._waiting and self._free_slots and len(self._waiting[0].tokens) <= self._n_cells:
            item = self._waiting.popleft()
            item.slot = self._free_slots.pop()
            self._n_cells -= len(item.tokens) if self._chunked else 0
            self._active.append(item)

    def _leave(self, item: _Input) -> None:
        self._active.remove(item)
        self._free_slots.append(item.slot)
        if self._chunked:
            self._n_cells += len(item.tokens)
            llama_cpp.llama_memory_seq_rm(self._memory, item.slot, 0, -1)

    def _fill(self) -> list[_Part]:
        parts: list[_Part] = []
        n_rows = 0
        for item in self._active:
            left = len(item.tokens) - item.computed
            room = self._budget - n_rows
            n = min(left, room) if self._chunked else left
            if n <= 0 or (n > room and parts):
                break
            self._add_rows(item, n_rows, n)
            parts.append(_Part(item, n_rows, n))
            n_rows += n
        self._batch.native.n_tokens = n_rows
        return parts

    def _add_rows(self, item: _Input, first: int, n: int) -> None:
        rows, start = slice(first, first + n), item.computed
        self._batch.tokens[rows] = item.tokens[start : start + n]
        self._batch.positions[rows] = np.arange(start, start + n)
        self._batch.slots[rows] = item.slot
        self._batch.outputs[rows] = 1

    def _collect(self, part: _Part) -> None:
        item = part.input
        item.computed += part.n_rows
        if self._chunked:
            pointer = llama_cpp.llama_get_embeddings(self._context)
            all_rows = np.ctypeslib.as_array(pointer, (part.first + part.n_rows, self.n_embd))
            item.pooled = pooled(self.pooling, item.pooled, all_rows[part.first :])
        else:
            pointer = llama_cpp.llama_get_embeddings_seq(self._context, item.slot)
            item.pooled = np.ctypeslib.as_array(pointer, (self.n_embd,)).astype(np.float64)
        if item.computed == len(item.tokens):
            item.vector = normalized(item.pooled)
            self._leave(item)
            self._finish(item.job)

    def _finish(self, job: EmbeddingJob) -> None:
        job.n_open -= 1
        if job.n_open == 0:
            self._post(job, [item.vector for item in job.inputs])

    def _fail(self, jobs: set[EmbeddingJob], error: LLMLocalError) -> None:
        for item in [item for item in self._active if item.job in jobs]:
            self._leave(item)
        self._waiting = deque(item for item in self._waiting if item.job not in jobs)
        for job in jobs:
            self._post(job, error)
