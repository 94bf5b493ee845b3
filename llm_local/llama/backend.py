"""The generation context: one unified KV buffer for all sequences, decoded in batches. Engine thread."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from llm_local.engine.backend import Logits, NoRoom
from llm_local.engine.batch import Rows
from llm_local.engine.pace import MOST_GUESSED
from llm_local.engine.state_bytes import StateBytes, allocate
from llm_local.engine.types import SamplingParams, Token
from llm_local.errors import DecodeFailed, StartupError
from llm_local.llama import devices
from llm_local.llama.candidates import Candidates
from llm_local.llama.device_sampling import DeviceSampling, check
from llm_local.llama.fingerprint import fingerprint
from llm_local.llama.header import read_shape
from llm_local.llama.logs import native_log
from llm_local.llama.model import LlamaModel
from llm_local.llama.native_batch import NativeBatch
from llm_local.llama.row_costs import row_costs
from llm_local.llama.sampler import LlamaSampler, row_logits
from llm_local.llama.spare_row import SpareRow, pays
from llm_local.llama.threads import ContextThreads

MAX_SLOTS = 255
"""LLAMA_MAX_SEQ of llama.cpp, which is most sequences of one context, less one for a spare row."""

WARM_UP_S = 1.5
"""Time in which step times are measured at the start."""
STATE_PARAMS = (
    "type_k", "type_v", "flash_attn_type", "rope_scaling_type", "rope_freq_base", "rope_freq_scale", "yarn_ext_factor",
    "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx", "swa_full", "kv_unified",
)  # fmt: skip
"""Context parameters that change the KV of the same tokens, or its layout (V is transposed without flash attention)."""

PROMPT_OUTPUTS = 32
"""Rows with logits that a batch may have beside one per running sequence (log probabilities of a prompt)."""


@dataclass(frozen=True, slots=True)
class ContextParams:
    """Sizes of the generation context.

    Attributes:
        n_ctx: KV cells for all sequences.
        n_batch: rows of one decode.
        n_ubatch: rows of one pass over the weights.
        n_running: most sequences decoded together.
        n_slots: most sequences resident, `n_running` included.
        n_threads: CPU threads of a step in which answers are written.
        n_threads_batch: CPU threads of a larger one; None for the same.
        kv_type: of the KV cells, `f16`, `q8_0` or `q4_0`.
        flash_attention: `auto`, `on` or `off`.
        backend_sampling: whether tokens are sampled where the logits are, as far as llama.cpp can.
    """

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_running: int
    n_slots: int
    n_threads: int
    n_threads_batch: int | None = None
    kv_type: str = "f16"
    flash_attention: str = "auto"
    backend_sampling: bool = False


KV_TYPES = {
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}
FLASH_ATTENTION = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


def new_context(model: LlamaModel, params: Any, what: str, setting: str = "LLM_CTX") -> Any:
    """Create a native context, whose cells `setting` says.

    Raises:
        StartupError: llama.cpp could not, mostly for want of memory.
    """
    native_log.errors.clear()
    context = llama_cpp.llama_init_from_model(model.model, params)
    if not context:
        raise StartupError(
            f"cannot create the {what} context with {params.n_ctx} cells: {native_log.why('out of memory?')}. "
            f"Lower {setting}{'' if params.type_k == llama_cpp.GGML_TYPE_F16 else ', or set LLM_KV_TYPE=f16'}."
        )
    return context


class LlamaBackend:
    """`engine.Backend` on llama.cpp; see there for the methods.

    Raises:
        StartupError: there is no memory for the context.
    """

    def __init__(self, model: LlamaModel, params: ContextParams) -> None:
        native = llama_cpp.llama_context_default_params()
        native.n_ctx = params.n_ctx
        native.n_batch = params.n_batch
        native.n_ubatch = min(params.n_ubatch, params.n_batch)
        native.n_seq_max = params.n_slots + (not model.is_recurrent)
        native.n_outputs_max = max(params.n_running, params.n_slots) + PROMPT_OUTPUTS
        if params.backend_sampling:
            native.n_outputs_max_per_seq = 1 + MOST_GUESSED
        native.n_threads = params.n_threads
        native.n_threads_batch = params.n_threads_batch or params.n_threads
        native.type_k = native.type_v = KV_TYPES[params.kv_type]
        native.flash_attn_type = FLASH_ATTENTION[params.flash_attention]
        native.kv_unified = True
        native.swa_full = True
        native.no_perf = True
        self._model = model
        self._context = new_context(model, native, "generation")
        self._threads = ContextThreads(self._context, params.n_threads, params.n_threads_batch)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._device = DeviceSampling(self._context) if params.backend_sampling else None
        self._batch = NativeBatch(params.n_batch)
        # With a GPU at hand llama.cpp repacks nothing, wherever the layers are.
        spare_pays = not devices.gpu_devices(None) and pays(read_shape(model.path))
        self._spare = SpareRow(self._memory, self._batch, params.n_slots, most=native.n_ubatch, pays=spare_pays)
        self.n_ctx = int(llama_cpp.llama_n_ctx(self._context))
        self.n_batch = params.n_batch
        self.n_slots = params.n_slots
        self.n_outputs = native.n_outputs_max
        self.row_costs = row_costs(model, kv_type=params.kv_type, flash_attention=params.flash_attention)
        self.can_share = not model.is_recurrent
        self._n_swa = int(llama_cpp.llama_model_n_swa(model.model))
        self.cell_bytes = 0
        self._params = native
        self._end_tokens = model.end_tokens
        self._candidates = Candidates(model.n_vocab)

    def decode(self, batch: Rows) -> None:
        """Compute the batch; see `Backend.decode`."""
        rows, own = batch.n_rows, self._batch
        own.native.n_tokens = rows
        own.tokens[:rows] = batch.tokens[:rows]
        own.positions[:rows] = batch.positions[:rows]
        own.slots[:rows] = batch.slots[:rows]
        own.outputs[:rows] = batch.outputs[:rows]
        self._threads.settle()
        self._spare.compute(rows, self._compute)

    def _compute(self) -> None:
        """Compute what is in the native batch."""
        code = llama_cpp.llama_decode(self._context, self._batch.native)
        if code == 1:
            raise NoRoom("llama_decode found no place in the KV cache")
        if code != 0:
            raise DecodeFailed(f"The model could not compute this batch (llama_decode returned {code}).")
        # A GPU still computes here. The logits are wanted next in any case, and so the time of a decode is known.
        llama_cpp.llama_synchronize(self._context)

    def logits(self, row: int) -> Logits:
        """Return the logits of a row; see `Backend.logits`."""
        return row_logits(self._context, row, self._model.n_vocab)

    def trim(self, slot: int, length: int) -> None:
        """Forget the end of a slot; see `Backend.trim`."""
        if not llama_cpp.llama_memory_seq_rm(self._memory, slot, length, -1):
            raise RuntimeError(f"llama.cpp could not trim slot {slot} to {length} tokens")

    def share(self, source: int, target: int, length: int) -> None:
        """Share a prefix; see `Backend.share`."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def holds(self, slot: int, length: int) -> bool:
        """Tell whether a slot has what follows its first tokens looks at; see `Backend.holds`.

        In layers with a sliding window llama.cpp takes any cell that lies outside of the window of the one sequence
        that owns it, `swa_full` or not. That is right for that sequence, but not for one that shares its beginning.
        """
        if not self._n_swa or not length:
            return True
        first = int(llama_cpp.llama_memory_seq_pos_min(self._memory, slot))
        return 0 <= first <= max(length - self._n_swa + 1, 0)

    def save(self, slot: int) -> StateBytes:
        """Copy the KV of a slot out; see `Backend.save`."""
        if not self.holds(slot, 1):
            return bytearray()
        try:
            data = allocate(llama_cpp.llama_state_seq_get_size(self._context, slot))
        except MemoryError:
            return bytearray()
        buffer = (ctypes.c_uint8 * len(data)).from_buffer(data)
        written = llama_cpp.llama_state_seq_get_data(self._context, buffer, len(data), slot)
        return data if written == len(data) else bytearray()

    def load(self, slot: int, data: StateBytes) -> bool:
        """Copy the KV of a slot in; see `Backend.load`."""
        buffer = (ctypes.c_uint8 * len(data)).from_buffer(data)
        return bool(llama_cpp.llama_state_seq_set_data(self._context, buffer, len(data), slot) > 0)

    def state_key(self) -> str:
        """Return what must be the same, as JSON, for bytes of `save` to be loaded: weights, context, llama.cpp.

        The number of cells is not in it: bytes of one sequence fit any that has room.
        """
        same = {name: getattr(self._params, name) for name in STATE_PARAMS}
        weights = {"architecture": self._model.architecture, "sha256_of_parts": fingerprint(self._model.path)}
        build = {"llama_cpp": llama_cpp.__version__, "byteorder": sys.byteorder}
        # Those of earlier versions may lack cells of layers with a sliding window.
        whole = {"whole_windows": True} if self._n_swa else {}
        return json.dumps({**weights, **build, **same, **whole}, sort_keys=True)

    def new_sampler(self, params: SamplingParams, prompt: tuple[Token, ...]) -> LlamaSampler:
        """Build a sampler chain over this context's logits."""
        return LlamaSampler(self._model, self._context, self._candidates, params, prompt, self.n_ctx, self._device)

    def piece(self, token: Token) -> bytes:
        """Return the bytes of a token in an answer."""
        return self._model.piece(token)

    def prompt_piece(self, token: Token) -> bytes:
        """Return the bytes of a token in a prompt; a BOS that the model adds is not in the text."""
        added = self._model.adds_bos and token == self._model.special["bos"]
        return b"" if added else self._model.piece(token, special=True)

    def is_end(self, token: Token) -> bool:
        """Tell whether the token ends an answer."""
        return token in self._end_tokens

    def warm_up(self, budget_s: float = WARM_UP_S) -> list[tuple[float, float]]:
        """Compute some rows and forget them: the weights get into memory, and steps and cells are measured.

        (The first cell of a sequence has the headers of its layers beside it.)

        Returns:
            Work (see `engine.step_time`) and seconds of each decode, of rising size, within about `budget_s`.

        Raises:
            StartupError: rows cannot be computed, or the device cannot sample, as it was told to.
        """
        if self._device is not None:
            check(self._device, lambda params: self.new_sampler(params, ()), lambda: self._decode_rows(1))
        try:
            return self._measure(budget_s)
        except (DecodeFailed, NoRoom) as error:
            raise StartupError(
                f"cannot compute with {self._model.path.name}: {native_log.why(str(error))}. "
                "Lower LLM_GPU_LAYERS, LLM_UBATCH_SIZE or LLM_CTX"
            ) from error

    def _measure(self, budget_s: float) -> list[tuple[float, float]]:
        sizes = []
        for n_rows in (1, 2):
            self._decode_rows(n_rows)
            sizes.append(int(llama_cpp.llama_state_seq_get_size(self._context, 0)))
        self.cell_bytes = sizes[1] - sizes[0]
        times: list[tuple[float, float]] = []
        n_rows, began = 1, time.perf_counter()
        while n_rows <= min(self.n_batch, self.n_ctx):
            seconds = min(self._decode_rows(n_rows) for _ in range(2))
            times.append((n_rows * (1 + self.row_costs.output), seconds))
            n_rows *= 2
            # The next two take up to twice as long each.
            if n_rows > self.n_outputs or time.perf_counter() - began + 4 * seconds > budget_s:
                break
        llama_cpp.llama_memory_clear(self._memory, True)
        return times

    def _decode_rows(self, n: int) -> float:
        """Return the seconds that `n` rows with logits take, which are all that is resident then."""
        llama_cpp.llama_memory_clear(self._memory, True)
        batch = self._batch
        batch.native.n_tokens = n
        batch.tokens[:n] = batch.slots[:n] = 0
        batch.positions[:n] = np.arange(n)
        batch.outputs[:n] = 1
        began = time.perf_counter()
        self._compute()
        return time.perf_counter() - began

    def close(self) -> None:
        """Free the context. The model is freed by its owner."""
        if self._context is not None:
            llama_cpp.llama_free(self._context)
            self._context = None
            if self._device is not None:
                self._device.close()
