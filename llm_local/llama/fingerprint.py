"""What tells one set of weights from another without reading all of it. Any thread."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

PART_BYTES = 64 * 2**10
PARTS = 64
EDGE_BYTES = 2**20

_SHARD = re.compile(r"-00001-of-(\d{5})\.gguf$")


def fingerprint(path: Path) -> str:
    """Return the sha256 (hex) of a GGUF's size, its first and last MiB and 64 parts of 64 KiB in even distances.

    Two fine-tunes of one model share size, metadata and vocabulary, and perhaps their last tensor: so parts of the
    whole length are taken, which a changed tensor of 1/64 of the file cannot miss. Hashing everything would take
    seconds for each GiB and read a file that may be mapped only in part. Shards count together.
    """
    digest = hashlib.sha256()
    for shard in shards(path):
        size = shard.stat().st_size
        digest.update(f"{size};".encode())
        with shard.open("rb") as file:
            digest.update(file.read(EDGE_BYTES))
            for n in range(PARTS):
                file.seek(n * size // PARTS)
                digest.update(file.read(PART_BYTES))
            file.seek(max(size - EDGE_BYTES, 0))
            digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()


def shards(path: Path) -> list[Path]:
    """Return all files of a model whose first shard is `path`: that file alone where the name has no shard number."""
    found = _SHARD.search(path.name)
    if found is None:
        return [path]
    count = found[1]
    return [path.with_name(f"{path.name[: found.start()]}-{n:05}-of-{count}.gguf") for n in range(1, int(count) + 1)]
