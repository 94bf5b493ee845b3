"""From the header of a GGUF (all its shards) to a `ModelShape`, before any weight is loaded. Any thread."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import llama_cpp

from llm_local.errors import StartupError
from llm_local.llama.fingerprint import shards
from llm_local.llama.ggml import Gguf, Tensor
from llm_local.llama.logs import native_log
from llm_local.llama.need import Layer, ModelShape

GGUF_MAGIC = b"GGUF"
MOST_LAYERS = 512
"""LLAMA_MAX_LAYERS of llama-hparams.h."""

_LAYER = re.compile(r"^(?:blk|enc\.blk|dec\.blk)\.(\d+)\.")

Q4_0, Q8_0, Q2_K, Q4_K, Q5_K, Q6_K, IQ4_NL, MXFP4 = 2, 8, 10, 12, 13, 14, 20, 39
FOUR_BITS = {Q4_0, Q4_K, IQ4_NL, MXFP4}
"""ggml's own numbers (ggml.h, enum ggml_type)."""


def check_gguf(path: Path) -> None:
    """Refuse what is not a GGUF before native code sees it.

    Raises:
        StartupError: no such file, not readable, or of another kind.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise StartupError(f"no such file: {path}") from None
    except OSError as error:
        raise StartupError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from None
    if magic != GGUF_MAGIC:
        raise StartupError(f"{path} is not a GGUF file: it begins with {magic!r}, not {GGUF_MAGIC!r}")


def read_shape(path: Path) -> ModelShape:
    """Read what a model needs; `path` is the file, or the first of its shards.

    Raises:
        StartupError: a file is missing or its header is damaged.
    """
    tensors: list[Tensor] = []
    for shard in shards(path)[1:]:
        with _open(shard) as file:
            tensors += file.tensors()
    with _open(path) as file:
        return _shape(path.name, file, file.tensors() + tensors)


def _open(path: Path) -> Gguf:
    check_gguf(path)
    native_log.errors.clear()
    try:
        file = Gguf(path)
    except ValueError as error:
        why = native_log.why(str(error))
        raise StartupError(
            f"cannot load {path}: {why}; it may be damaged or cut off: remove it, and copy or fetch it again"
        ) from None
    has, needs = path.stat().st_size, file.n_bytes
    if has < needs:
        file.close()
        raise StartupError(f"{path} is cut off: it has {has} bytes of {needs}; remove it, and copy or fetch it again")
    return file


def _shape(name: str, file: Gguf, tensors: list[Tensor]) -> ModelShape:
    architecture = file.text("general.architecture") or ""

    def numbers(key: str) -> list[int]:
        return [value for value in file.numbers(f"{architecture}.{key}") if isinstance(value, int)]

    def number(key: str, default: int = 0) -> int:
        return max(numbers(key), default=default)

    n_layer, n_embd = number("block_count"), number("embedding_length")
    if not 0 < n_layer <= MOST_LAYERS:
        raise StartupError(
            f"cannot load {name}: its header says that it has {max(n_layer, 0)} layers of the architecture "
            f"'{architecture}'; what comes beside a model (a projector, an importance matrix) is none"
        )
    n_head = max(number("attention.head_count", 1), 1)
    k_size = number("attention.key_length", n_embd // n_head)
    causal = file.numbers(f"{architecture}.attention.causal") != [False]
    n_used, n_experts = number("expert_used_count"), number("expert_count")
    by_name = {tensor.name: tensor for tensor in tensors}
    embeddings = by_name.get("token_embd.weight")
    tied = causal and "output.weight" not in by_name
    head = embeddings if tied else by_name.get("output.weight")
    others = [t for t in tensors if not _LAYER.match(t.name)]
    output = [t for t in others if t.name.startswith("output") and t is not head] + ([head] if head else [])
    in_layers = [t for t in tensors if _LAYER.match(t.name)]
    return ModelShape(
        name=name,
        architecture=architecture,
        layers=_layers(in_layers, n_layer, _kv_values(numbers, n_layer, n_head, k_size, causal), _state_bytes(number)),
        input_bytes=_total(t for t in others if t not in output or t is embeddings),
        output_bytes=_total(output),
        output_repacked_bytes=_total(t for t in output if _is_repacked(t)),
        tied_bytes=embeddings.n_bytes if tied and embeddings else 0,
        n_params=sum(_elements(t) for t in tensors),
        n_vocab=file.length("tokenizer.ggml.tokens") or number("vocab_size"),
        n_embd=n_embd,
        n_ff=max(number("feed_forward_length"), n_used * number("expert_feed_forward_length")),
        n_head=n_head,
        q_width=n_head * k_size,
        n_ctx_train=number("context_length"),
        largest_matrix_bytes=max((t.n_bytes for t in in_layers), default=0),
        expert_share=n_used / n_experts if n_experts else 1.0,
        has_logits=causal,
        sliding_window=number("attention.sliding_window"),
    )


def _layers(
    tensors: list[Tensor], n_layer: int, kv_values: list[tuple[int, int]], state_bytes: int
) -> tuple[Layer, ...]:
    own: list[list[Tensor]] = [[] for _ in range(n_layer)]
    for tensor in tensors:
        found = _LAYER.match(tensor.name)
        if found and int(found[1]) < n_layer:
            own[int(found[1])].append(tensor)
    return tuple(
        Layer(
            n_bytes=_total(of_layer),
            repacked_bytes=_total(t for t in of_layer if _is_repacked(t)),
            expert_bytes=_total(t for t in of_layer if "_exps" in t.name),
            k_values=k,
            v_values=v,
            state_bytes=state_bytes if any(".ssm_" in t.name or ".time_mix_" in t.name for t in of_layer) else 0,
        )
        for of_layer, (k, v) in zip(own, kv_values, strict=True)
    )


def _kv_values(
    numbers: Callable[[str], list[int]], n_layer: int, n_head: int, k_size: int, causal: bool
) -> list[tuple[int, int]]:
    """Return the numbers of K and V for each token, by layer: the KV heads may differ between layers."""
    kv_heads = numbers("attention.head_count_kv") or numbers("attention.head_count") or [n_head]
    v_size = max(numbers("attention.value_length"), default=k_size)
    heads = kv_heads if len(kv_heads) == n_layer else kv_heads[:1] * n_layer
    return [(n * k_size, n * v_size) if causal else (0, 0) for n in heads]


def _state_bytes(number: Callable[[str], int]) -> int:
    """Return the bytes of a layer's recurrent state in f32 (llama-hparams.cpp, n_embd_r and n_embd_s)."""
    if number("wkv.head_size"):
        return int(4 * number("embedding_length") * (2 + number("wkv.head_size")))
    inner, state = number("ssm.inner_size"), number("ssm.state_size")
    rolling = max(number("ssm.conv_kernel") - 1, 0) * (inner + 2 * number("ssm.group_count") * state)
    return int(4 * (rolling + state * inner))


def repacked_types(system_info: str) -> frozenset[int]:
    """Return the types that ggml's CPU backend copies into an order of its own (ggml-cpu/repack.cpp).

    Args:
        system_info: what llama.cpp says of the CPU and of its build, such as `AVX2 = 1 | REPACK = 1`.
    """
    has = set(re.findall(r"(\w+) = 1", system_info))
    types: set[int] = set()
    if "AVX2" in has:
        types |= FOUR_BITS
    if "AVX512" in has:
        types |= {Q2_K}
    if "NEON" in has and has & {"DOTPROD", "MATMUL_INT8"}:
        types |= FOUR_BITS | {Q8_0, Q5_K, Q6_K}
    return frozenset(types if "REPACK" in has else ())


@cache
def _repacked_here() -> frozenset[int]:
    return repacked_types(llama_cpp.llama_print_system_info().decode())


def _is_repacked(tensor: Tensor) -> bool:
    return tensor.type in _repacked_here() and tensor.shape[1] > 1 and tensor.shape[1] % 8 == 0


def _elements(tensor: Tensor) -> int:
    a, b, c, d = tensor.shape
    return a * b * c * d


def _total(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.n_bytes for tensor in tensors)
