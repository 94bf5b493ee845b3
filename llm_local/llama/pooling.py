"""How the vectors of an input's tokens become one vector. Engine thread."""

from __future__ import annotations

from enum import StrEnum

import llama_cpp
import numpy as np
import numpy.typing as npt

from llm_local.llama.model import LlamaModel

Vector = npt.NDArray[np.float32]
Sum = npt.NDArray[np.float64]


class Pooling(StrEnum):
    """How token vectors become one vector."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"


NATIVE_POOLING = {
    Pooling.MEAN: llama_cpp.LLAMA_POOLING_TYPE_MEAN,
    Pooling.CLS: llama_cpp.LLAMA_POOLING_TYPE_CLS,
    Pooling.LAST: llama_cpp.LLAMA_POOLING_TYPE_LAST,
}


def gguf_pooling(model: LlamaModel) -> Pooling:
    """Return what the GGUF says, else the mean."""
    number = model.metadata.get(f"{model.architecture}.pooling_type", "")
    for pooling, native in NATIVE_POOLING.items():
        if str(native) == number:
            return pooling
    return Pooling.MEAN


def pooled(pooling: Pooling, before: Sum | None, rows: Vector) -> Sum:
    """Return the vector [n_embd], of any length, of an input so far.

    Args:
        pooling: how.
        before: what this returned for the tokens before, None for none.
        rows: vectors [n, n_embd] of the next tokens.
    """
    if pooling is Pooling.MEAN:
        added: Sum = rows.sum(axis=0, dtype=np.float64)
        return added if before is None else before + added
    if pooling is Pooling.CLS and before is not None:
        return before
    one: Sum = rows[0 if pooling is Pooling.CLS else -1].astype(np.float64)
    return one


def normalized(vector: Sum) -> Vector:
    """Return the vector with L2 norm 1 (a zero vector as it is)."""
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm else vector).astype(np.float32)
