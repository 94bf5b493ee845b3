"""The grammar of GGUF file names: `<stem>-<quantization>[-<shard>-of-<shards>].gguf`, in any case."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_SUFFIX = re.compile(r"\.gguf$", re.IGNORECASE)
_SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})$", re.IGNORECASE)
_KIND = r"(?:ud-)?(?:i?q\d+(?:_\w+)?|tq\d+(?:_\w+)?|f16|fp16|f32|fp32|bf16|mxfp4\w*)"
_QUANTIZATION = re.compile(rf"[-._:]{_KIND}$", re.IGNORECASE)
_ALONE = re.compile(_KIND, re.IGNORECASE)
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_SAME = {"FP16": "F16", "FP32": "F32"}


@dataclass(frozen=True, slots=True)
class ModelName:
    """What a file name says, so that spellings can be compared.

    Attributes:
        stem: in lower case, without shard, quantization and suffix.
        quantization: in capitals, F16 for fp16; None where the name has none.
    """

    stem: str
    quantization: str | None = None

    def __str__(self) -> str:
        return self.stem if self.quantization is None else f"{self.stem}-{self.quantization.lower()}"


def parse_name(name: str) -> ModelName:
    """Return what `name` says: a file name with or without folder and suffix, or a name such as `qwen:q4_k_m`."""
    stem = _without_shard(name)
    found = _QUANTIZATION.search(stem)
    if found is None:
        return ModelName(stem.lower())
    return ModelName(stem[: found.start()].lower(), as_quantization(found[0][1:]))


def as_quantization(text: str) -> str | None:
    """Return a quantization in its usual spelling, or None where `text` is none."""
    kind = text.upper()
    return _SAME.get(kind, kind) if _ALONE.fullmatch(text) else None


def shard_names(name: str) -> list[str]:
    """Return the names of all shards of the set that `name` is one of, in order; of a single file its own."""
    base = _SUFFIX.sub("", name)
    shard = _SHARD.search(base)
    if shard is None:
        return [name]
    count, suffix = int(shard["count"]), name[len(base) :]
    if count == 0:
        return [name]
    return [f"{base[: shard.start()]}-{number:05}-of-{count:05}{suffix}" for number in range(1, count + 1)]


def is_first(name: str) -> bool:
    """Tell whether a GGUF is a whole model or the first of its shards."""
    return _SUFFIX.search(name) is not None and shard_names(name)[0].lower() == name.lower()


def first_shards(names: Iterable[str]) -> list[str]:
    """Return the models among file names: whole GGUFs and first shards, without projectors and matrices."""
    return [name for name in names if is_first(name) and not _NO_MODEL.search(PurePosixPath(name).name)]


def served_name(path: Path) -> str:
    """Return the model's name in the API: the file's, in lower case, without shard number and quantization."""
    return parse_name(path.name).stem


def quantization(path: Path) -> str | None:
    """Return the quantization that the file's name ends with, in capitals."""
    found = _QUANTIZATION.search(_without_shard(path.name))
    return found[0][1:].upper() if found else None


def _without_shard(name: str) -> str:
    return _SHARD.sub("", _SUFFIX.sub("", PurePosixPath(name).name))
