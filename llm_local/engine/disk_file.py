"""One parked sequence in a file: written whole or not at all, and never believed unless every bit is right.

    magic 8 | version 4 | n_key 4 | n_tokens 4 | n_data 8 | key | tokens int32 | sha256 of all this | data | sha256

llama.cpp trusts what it is given to load. So a file is used only if it was written for the same weights, context
parameters and llama.cpp (its key says so, as JSON), and if both checksums are right; the second covers the first and
the data. On two cores of an AVX-512 server crc32 takes in 4.2 GB/s, sha256 1.8, blake2b 0.9; a file is read by a
thread of its own, so that the strong one costs nobody anything. Integers are little-endian. Any thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llm_local.engine.radix_tree import Tokens
from llm_local.engine.state_bytes import StateBytes, allocate

MAGIC = b"LLMLKV\r\n"
VERSION = 1
SUFFIX = ".kv"
DIGEST_BYTES = 32

_FIXED = struct.Struct("<8sIIIQ")


class Foreign(Exception):
    """The file is of another program, version, model or context: not ours to use or to remove."""


class Damaged(Exception):
    """The file was ours and is not what was written."""


def file_name(key: str, tokens: Tokens) -> str:
    """Return the name that such an entry has: the same tokens under the same key are the same file."""
    mine = hashlib.sha256(f"{VERSION} {key}".encode()).hexdigest()[:12]
    return f"{mine}-{hashlib.sha256(tokens.astype('<i4').tobytes()).hexdigest()[:24]}{SUFFIX}"


def file_bytes(key: str, n_tokens: int, n_data: int) -> int:
    """Return the size of such a file."""
    return _FIXED.size + len(key.encode()) + 4 * n_tokens + DIGEST_BYTES + n_data + DIGEST_BYTES


def write(path: Path, key: str, tokens: Tokens, data: StateBytes) -> None:
    """Write an entry under a temporary name, make it durable, and give it its name. Nobody else may read it.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    text = key.encode()
    head = _FIXED.pack(MAGIC, VERSION, len(text), len(tokens), len(data)) + text + tokens.astype("<i4").tobytes()
    head += hashlib.sha256(head).digest()
    checksum = hashlib.sha256(head)
    checksum.update(data)
    # In containers that share a folder all processes may have the same number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(head)
            file.write(data)
            file.write(checksum.digest())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def read_tokens(path: Path, key: str) -> tuple[Tokens, int]:
    """Return the tokens of an entry and the size of its file; the data is not looked at.

    Raises:
        Foreign, Damaged, OSError
    """
    with path.open("rb") as file:
        tokens, n_data, _ = _read_head(file, key)
    return tokens, file_bytes(key, len(tokens), n_data)


def read(path: Path, key: str) -> tuple[Tokens, StateBytes]:
    """Return the tokens and the data of an entry, both checked.

    Raises:
        Foreign, Damaged, OSError
    """
    with path.open("rb") as file:
        tokens, n_data, head = _read_head(file, key)
        data = allocate(n_data)
        view, done = memoryview(data), 0
        while done < n_data and (n := file.readinto(view[done:])):
            done += n
        checksum = hashlib.sha256(head)
        checksum.update(data)
        if done < n_data or file.read() != checksum.digest():
            raise Damaged("its checksum is wrong")
    return tokens, data


def _read_head(file: BinaryIO, key: str) -> tuple[Tokens, int, bytes]:
    fixed = file.read(_FIXED.size)
    if len(fixed) < _FIXED.size and MAGIC.startswith(fixed[: len(MAGIC)]):
        raise Damaged("it is cut short")
    if not fixed.startswith(MAGIC):
        raise Foreign("it was not written by this program")
    _, version, n_key, n_tokens, n_data = _FIXED.unpack(fixed)
    if version != VERSION:
        raise Foreign(f"its format is version {version}")
    # Checked before anything of that size is allocated.
    n_head = n_key + 4 * n_tokens + DIGEST_BYTES
    size, wanted = os.fstat(file.fileno()).st_size, _FIXED.size + n_head + n_data + DIGEST_BYTES
    if size != wanted:
        raise Damaged(f"it has {size} bytes, not {wanted}")
    rest = file.read(n_head)
    head, digest = fixed + rest[:-DIGEST_BYTES], rest[-DIGEST_BYTES:]
    if hashlib.sha256(head).digest() != digest:
        raise Damaged("the checksum of its header is wrong")
    if rest[:n_key] != key.encode():
        raise Foreign("it is of another model or of other settings")
    tokens = np.frombuffer(rest[n_key : n_key + 4 * n_tokens], "<i4").astype(np.int32)
    return tokens, n_data, head + digest


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
