"""A row more for batches that leave three over, where four rows are computed sooner than three. Engine thread.

ggml's kernels for repacked weights (on x86 Q4_K, Q4_0 and a few others) take four rows at a time. Those that are left
over go one by one, so that three of them cost three passes over the weights where four cost about two: Qwen2.5-1.5B
in Q4_K_M takes 191 ms for three rows and 149 with one more (two CPUs; see docs/performance.md).

The row is of a sequence of its own, which is forgotten right after, and it has no logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llama_cpp

from llm_local.engine.backend import NoRoom
from llm_local.llama.native_batch import NativeBatch
from llm_local.llama.need import ModelShape

GROUP = 4
"""Rows that the kernels take at a time."""

WORTH = 0.3
"""Share of the weights' bytes that must be repacked: with 0.64 (Qwen2.5-1.5B Q4_K_M) three rows win 22 %, with 0.08
(0.5B, most of whose weights are of types that are not) they lose 3 %. It is not measured at the start: rows that go
through another kernel have other digits, and a request with a seed is to be answered alike after a restart."""

MOST_ROWS = 16
"""Of larger batches what is left over is a small part."""


def pays(shape: ModelShape) -> bool:
    """Return whether batches of a model are computed sooner with a spare row, if the CPU computes them.

    Experts take rows one by one, and a spare row would read weights of its own. A recurrent state is dear.
    """
    if shape.expert_share < 1.0 or any(layer.state_bytes for layer in shape.layers):
        return False
    repacked = sum(layer.repacked_bytes for layer in shape.layers) + shape.output_repacked_bytes
    return repacked >= WORTH * (sum(layer.n_bytes for layer in shape.layers) + shape.output_bytes)


class SpareRow:
    """Fills up a native batch.

    Args:
        memory: llama.cpp's, of the context.
        batch: whose rows are followed by this one.
        slot: a sequence that nobody else uses.
        most: rows of a batch with it. More than one pass takes would only cost.
        pays: whether it is worth it; see `pays`.
    """

    def __init__(self, memory: Any, batch: NativeBatch, slot: int, most: int, *, pays: bool) -> None:
        self.pays = pays
        self._memory = memory
        self._batch = batch
        self._slot = slot
        self._most = min(most, MOST_ROWS)

    def compute(self, n: int, compute: Callable[[], None]) -> None:
        """Compute the `n` rows that are in the batch, with one more where that is sooner.

        Args:
            n: rows.
            compute: computes the native batch; what it raises is raised here.
        """
        if not self.pays or n % GROUP != GROUP - 1 or n >= self._most:
            compute()
            return
        batch = self._batch
        batch.tokens[n] = batch.positions[n] = batch.outputs[n] = 0
        batch.slots[n] = self._slot
        batch.native.n_tokens = n + 1
        try:
            compute()
        except NoRoom:
            # There may be room for the others.
            batch.native.n_tokens = n
            compute()
        finally:
            # A whole sequence can always be removed.
            llama_cpp.llama_memory_seq_rm(self._memory, self._slot, -1, -1)
