"""The file of a parked sequence: nothing but what was written is ever read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from llm_local.engine import disk_file

KEY = '{"model": "a"}'
TOKENS = np.arange(20, dtype=np.int32)


def written(folder: Path, data: bytes = bytes(range(100)), key: str = KEY) -> Path:
    path = folder / disk_file.file_name(key, TOKENS)
    disk_file.write(path, key, TOKENS, bytearray(data))
    return path


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = written(tmp_path)
    tokens, data = disk_file.read(path, KEY)
    assert (tokens.tolist(), bytes(data)) == (TOKENS.tolist(), bytes(range(100)))
    only_tokens, n_bytes = disk_file.read_tokens(path, KEY)
    assert only_tokens.tolist() == TOKENS.tolist()
    assert n_bytes == path.stat().st_size == disk_file.file_bytes(KEY, 20, 100)
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "no temporary file is left"
    assert path.stat().st_mode & 0o077 == 0, "prompts are nobody else's business"


def test_no_single_byte_can_change_unseen(tmp_path: Path) -> None:
    path = written(tmp_path)
    with path.open("r+b") as file:
        for at, byte in enumerate(path.read_bytes()):
            for wrong in (byte ^ 1, byte ^ 0x80, byte ^ 0xFF):
                os.pwrite(file.fileno(), bytes([wrong]), at)
                with pytest.raises((disk_file.Damaged, disk_file.Foreign)):
                    disk_file.read(path, KEY)
            os.pwrite(file.fileno(), bytes([byte]), at)
    disk_file.read(path, KEY)


def test_no_cut_and_no_appendix_goes_unseen(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for n in reversed(range(len(whole))):
        os.truncate(path, n)
        with pytest.raises(disk_file.Damaged):
            disk_file.read(path, KEY)
        with pytest.raises(disk_file.Damaged):
            disk_file.read_tokens(path, KEY)
    path.write_bytes(whole + b"\0")
    with pytest.raises(disk_file.Damaged):
        disk_file.read(path, KEY)


def test_what_is_of_another_model_version_or_program_is_foreign(tmp_path: Path) -> None:
    other = written(tmp_path, key='{"model": "b"}')
    with pytest.raises(disk_file.Foreign, match="another model"):
        disk_file.read(other, KEY)
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"\x09" + whole[9:])
    with pytest.raises(disk_file.Foreign, match="version 9"):
        disk_file.read(path, KEY)
    path.write_bytes(b"some text of somebody else, which happens to end like that")
    with pytest.raises(disk_file.Foreign, match="not written by this program"):
        disk_file.read(path, KEY)


def test_sizes_that_a_header_claims_are_not_allocated(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[20:28] = (2**60).to_bytes(8, "little")
    path.write_bytes(whole)
    with pytest.raises(disk_file.Damaged, match="bytes, not"):
        disk_file.read(path, KEY)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_file.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []
