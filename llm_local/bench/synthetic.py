"""A GGUF with the shape and the types of a real model and random weights: its speed and memory without its weights.

It is written as a stream: memory stays bounded whatever the model. The vocabulary and the chat template come from a
GGUF that the user names.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_local.bench.blocks import LAYOUTS, SIGMA, random_blocks
from llm_local.bench.extra import need
from llm_local.bench.shapes import Mix, Shape, Tensor, tensors
from llm_local.errors import StartupError

CHUNK_BYTES = 16 * 2**20
SPARE_BYTES = 256 * 2**20
"""Of the disk that stay free."""
PIECE_TYPE_UNUSED = 5
"""`LLAMA_TOKEN_TYPE_UNUSED`: a token that fills the vocabulary up and is never drawn from text."""


@dataclass(frozen=True, slots=True)
class Field:
    """A metadata entry as it is copied: value, type, and the type of an array's items."""

    value: Any
    type: Any
    item_type: Any


def synthesize(
    shape: Shape,
    mix: Mix,
    vocabulary: Path,
    out: Path,
    *,
    seed: int = 0,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> int:
    """Write the model, and return its size in bytes; `out` appears when it is complete.

    Raises:
        StartupError: the vocabulary cannot be read, `out` exists, or the disk has no room.
    """
    need("gguf", "--synthetic")
    if out.exists():
        raise StartupError(f"{out} exists already: remove it, or name another file")
    fields = read_tokenizer(vocabulary)
    fill_up(fields, shape.n_vocab)
    wanted = list(tensors(shape, mix, len(fields["tokenizer.ggml.tokens"].value)))
    n_bytes = sum(size_of(tensor) for tensor in wanted)
    _check_room(out, n_bytes)
    partial = out.with_name(out.name + ".partial")
    try:
        _write(partial, shape, mix, fields, wanted, seed, on_bytes)
        partial.replace(out)
    except OSError as error:
        raise StartupError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return out.stat().st_size


def read_tokenizer(path: Path) -> dict[str, Field]:
    """Return the `tokenizer.*` metadata of a GGUF.

    Raises:
        StartupError: it is no GGUF, or has no vocabulary.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise StartupError(f"cannot read the vocabulary of {path}: {error}") from None
    found = {
        name: Field(field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for name, field in reader.fields.items()
        if name.startswith("tokenizer.")
    }
    if "tokenizer.ggml.tokens" not in found:
        raise StartupError(f"{path} has no vocabulary: name a GGUF of a model that generates text")
    return found


def fill_up(fields: dict[str, Field], n_vocab: int) -> None:
    """Add unused tokens up to `n_vocab`, as the converter does where a model has more embeddings than tokens."""
    tokens = fields["tokenizer.ggml.tokens"].value
    missing = range(len(tokens), n_vocab)
    more = {"tokens": [f"[PAD{number}]" for number in missing], "token_type": [PIECE_TYPE_UNUSED] * len(missing)}
    more["scores"] = [0.0] * len(missing)
    for name, values in more.items():
        if f"tokenizer.ggml.{name}" in fields:
            fields[f"tokenizer.ggml.{name}"].value.extend(values)


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor."""
    n_weights = max(tensor.n_rows, 1) * tensor.n_columns
    if tensor.type == "F32":
        return 4 * n_weights
    layout = LAYOUTS[tensor.type]
    return n_weights // layout.n_weights * layout.n_bytes


def _check_room(out: Path, n_bytes: int) -> None:
    if not out.parent.is_dir():
        raise StartupError(f"there is no folder {out.parent}")
    free = shutil.disk_usage(out.parent).free
    if free < n_bytes + SPARE_BYTES:
        raise StartupError(f"{out} needs {n_bytes / 1e9:.1f} GB, and {out.parent} has {free / 1e9:.1f} GB free")


def _write(
    path: Path,
    shape: Shape,
    mix: Mix,
    fields: dict[str, Field],
    wanted: list[Tensor],
    seed: int,
    on_bytes: Callable[[int], None],
) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, shape.architecture)
    _describe(writer, shape, mix)
    for name, field in fields.items():
        writer.add_key_value(name, field.value, field.type, field.item_type)
    for tensor in wanted:
        size = [tensor.n_rows, tensor.n_columns] if tensor.n_rows else [tensor.n_columns]
        kind = GGMLQuantizationType[tensor.type]
        writer.add_tensor_info(tensor.name, size, np.dtype(np.float32), size_of(tensor), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        random = np.random.default_rng(seed)
        for tensor in wanted:
            writer.write_padding(file, file.tell())
            for piece in _pieces(random, tensor):
                file.write(piece)
                on_bytes(len(piece))
        writer.write_padding(file, file.tell())
    finally:
        writer.close()


def _describe(writer: Any, shape: Shape, mix: Mix) -> None:
    writer.add_name(f"{shape.name} {mix.name}, random weights")
    writer.add_file_type(mix.file_type)
    writer.add_quantization_version(2)
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_epsilon)


def _pieces(random: Any, tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor, at most CHUNK_BYTES at a time."""
    import numpy as np

    if tensor.type == "F32":
        n = max(tensor.n_rows, 1) * tensor.n_columns
        values = np.ones(n) if tensor.is_norm else random.normal(0, SIGMA, n)
        yield memoryview(values.astype("<f4").tobytes())
        return
    layout = LAYOUTS[tensor.type]
    n_blocks = tensor.n_rows * tensor.n_columns // layout.n_weights
    at_once = CHUNK_BYTES // layout.n_bytes
    for begin in range(0, n_blocks, at_once):
        yield memoryview(random_blocks(random, tensor.type, min(at_once, n_blocks - begin)).tobytes())
