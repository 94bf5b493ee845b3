"""A `llama_batch` to be filled from numpy. Of one context's thread."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt


class NativeBatch:
    """A `llama_batch` whose arrays are numpy's, so that filling it is four copies. Each row is in one sequence."""

    def __init__(self, n_max: int) -> None:
        self.tokens = np.zeros(n_max, np.int32)
        self.positions = np.zeros(n_max, np.int32)
        self.slots = np.zeros(n_max, np.int32)
        self.outputs = np.zeros(n_max, np.int8)
        self._n_slots = np.ones(n_max, np.int32)
        row_bytes = self.slots.itemsize
        self._slot_pointers = self.slots.ctypes.data + row_bytes * np.arange(n_max, dtype=np.uintp)
        self.native = llama_cpp.llama_batch(
            n_tokens=0,
            token=_pointer(self.tokens, llama_cpp.llama_token),
            embd=None,
            pos=_pointer(self.positions, llama_cpp.llama_pos),
            n_seq_id=_pointer(self._n_slots, ctypes.c_int32),
            seq_id=_pointer(self._slot_pointers, ctypes.POINTER(llama_cpp.llama_seq_id)),
            logits=_pointer(self.outputs, ctypes.c_int8),
        )


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
