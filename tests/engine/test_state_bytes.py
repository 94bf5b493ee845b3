"""Memory that goes back to the system."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_local.engine import disk_file
from llm_local.engine.state_bytes import allocate


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_they_are_written_hashed_and_read_like_others(tmp_path: Path) -> None:
    data = allocate(1000)
    assert (len(data), bytes(data)) == (1000, bytes(1000))
    memoryview(data)[:4] = b"abcd"
    assert hashlib.sha256(data).digest() == hashlib.sha256(b"abcd" + bytes(996)).digest()
    path = tmp_path / "entry"
    disk_file.write(path, "key", np.arange(5, dtype=np.int32), data)
    tokens, again = disk_file.read(path, "key")
    assert tokens.tolist() == [0, 1, 2, 3, 4]
    assert bytes(again) == bytes(data)
    assert type(again) is type(data), "also from the disk"
    assert not allocate(0)


def test_more_than_there_is_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="bytes for the KV"):
        allocate(2**62)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_system_gets_them_back_whatever_else_is_still_in_use() -> None:
    """With malloc some 60 MiB stay with the process here, once its threshold for mapping has grown."""
    block = 5 * 2**20
    grown = bytearray(30 * 2**20)
    del grown
    before = resident_bytes()
    blocks = [allocate(block) for _ in range(24)]
    for data in blocks:
        memoryview(data)[:] = b"\x01" * block
    assert resident_bytes() - before >= 23 * block
    kept = blocks[1::2]
    del blocks, data
    assert resident_bytes() - before < len(kept) * block + 2**23
