"""The one seam between the engine and what computes. `llm_local.llama` plugs in here, and so do the tests' fakes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_local.engine.batch import Rows
from llm_local.engine.constraint import Allowed
from llm_local.engine.state_bytes import StateBytes
from llm_local.engine.step_costs import RowCosts
from llm_local.engine.types import SamplingParams, Token
from llm_local.errors import LLMLocalError

Logits = npt.NDArray[np.float32]


class NoRoom(LLMLocalError):
    """The KV cache has no place for the batch; nothing was changed."""


class Sampler(Protocol):
    """Chooses tokens for one sequence; has a random state and remembers what was taken."""

    def sample(self, row: int, allowed: Allowed | None = None) -> Token:
        """Choose the token that follows output row `row` of the last decode, among all or the `allowed` [n_vocab]."""
        ...

    def enter(self, slot: int, *, freely: bool) -> None:
        """Learn that the sequence runs in a slot from now on. Engine thread.

        Args:
            slot: where the rows to be sampled are.
            freely: whether it is sampled among all tokens, after its prompt only: this may be left to a device.
        """
        ...

    def leave(self) -> None:
        """Learn that the sequence has to leave its slot before it is over, and may enter another one."""
        ...

    def accept(self, token: Token) -> None:
        """Remember a token that was taken, sampled or not: penalties look back at it."""
        ...

    def close(self) -> None:
        """Free what it holds, in a slot or not. Calling twice is harmless."""
        ...


class Backend(Protocol):
    """Computes batches and owns KV memory. All methods but `new_sampler` run on the engine thread.

    Attributes:
        n_ctx: KV cells, shared by all slots.
        n_batch: most rows of one decode.
        n_slots: how many sequences can be resident.
        n_outputs: most rows of one decode that can have logits.
        row_costs: estimates of what comes with a row.
        can_share: whether a part of a sequence can be trimmed and shared (false for recurrent models).
    """

    n_ctx: int
    n_batch: int
    n_slots: int
    n_outputs: int
    row_costs: RowCosts
    can_share: bool

    @property
    def cell_bytes(self) -> int:
        """Bytes of one cell's KV, as `save` writes it."""
        ...

    def decode(self, batch: Rows) -> None:
        """Compute all rows of the batch.

        Raises:
            NoRoom: nothing was computed; try fewer rows.
            DecodeFailed: the slots of the batch have unknown contents now and must be trimmed to 0.
        """
        ...

    def logits(self, row: int) -> Logits:
        """Return the logits [n_vocab] of output row `row`: a view that is valid until the next decode."""
        ...

    def trim(self, slot: int, length: int) -> None:
        """Forget what slot `slot` holds from position `length` on."""
        ...

    def share(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of slot `source` those of the empty slot `target`, too, without a copy."""
        ...

    def holds(self, slot: int, length: int) -> bool:
        """Tell whether slot `slot` still has all that a token behind its first `length` looks at.

        It does, but where a model has sliding windows: there what a sequence has left behind may be gone.
        """
        ...

    def save(self, slot: int) -> StateBytes:
        """Return the KV of slot `slot` as bytes; empty when that is not possible."""
        ...

    def load(self, slot: int, data: StateBytes) -> bool:
        """Fill the empty slot `slot` with what `save` returned; False, and it must be trimmed to 0, when that fails."""
        ...

    def new_sampler(self, params: SamplingParams, prompt: tuple[Token, ...]) -> Sampler:
        """Build a sampler. Any thread."""
        ...

    def piece(self, token: Token) -> bytes:
        """Return the bytes that a token stands for in an answer; empty for control tokens."""
        ...

    def prompt_piece(self, token: Token) -> bytes:
        """Return the bytes that a token stands for in a prompt, where control tokens are spelled out."""
        ...

    def is_end(self, token: Token) -> bool:
        """Tell whether the token ends an answer."""
        ...

    def close(self) -> None:
        """Free all native memory."""
        ...


class SideJob(Protocol):
    """Other work for the engine thread, done in bounded pieces between its steps (embeddings)."""

    @property
    def pending(self) -> bool:
        """Whether there is something to do."""
        ...

    def step(self) -> None:
        """Do a bounded piece of it. Failures go to whom they concern; what is raised here ends the engine."""
        ...

    def close(self, error: LLMLocalError) -> None:
        """Fail what is left with `error` and free native memory."""
        ...
