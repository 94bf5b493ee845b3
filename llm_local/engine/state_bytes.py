"""Memory for the KV of sequences that are not in the native cache."""

from __future__ import annotations

import mmap

StateBytes = bytearray | mmap.mmap
"""Bytes that can be written; empty for none."""

_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}


def allocate(n: int) -> StateBytes:
    """Return `n` bytes of the system's own, which it gets back as soon as nobody refers to them.

    malloc keeps a third and more of what was freed between what is still in use, once it has seen a large block freed
    (glibc: of all blocks up to 32 MiB). And a bytearray is filled with zeros while no other thread can run.

    Raises:
        MemoryError: there are not so many.
    """
    if not n:
        return bytearray()
    try:
        return mmap.mmap(-1, n, **_PRIVATE)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"{n} bytes for the KV of a sequence: {error}") from None
