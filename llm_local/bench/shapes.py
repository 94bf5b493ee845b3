"""The shapes of known models: every tensor with its size and the type that llama.cpp's quantizer gives it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_local.errors import StartupError


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer as its GGUF describes it; from the `config.json` files of Qwen2.5 and Llama 3.1."""

    name: str
    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    """At least: a vocabulary of fewer tokens is filled up, as the published files are."""
    n_ctx_train: int
    rope_base: float
    rms_epsilon: float
    has_qkv_bias: bool

    @property
    def head_dim(self) -> int:
        """Values of a head."""
        return self.n_embd // self.n_head


@dataclass(frozen=True, slots=True)
class Mix:
    """What llama.cpp's quantizer makes of a model for one file type (`llama_tensor_get_type` in llama-quant.cpp)."""

    name: str
    file_type: int
    """`LLAMA_FTYPE_*`."""
    base: str
    more: str
    """For attn_v and ffn_down in the layers that get more bits, and for the output."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its name, rows and columns (0 rows: a vector), type; a norm is all ones."""

    name: str
    n_rows: int
    n_columns: int
    type: str

    @property
    def is_norm(self) -> bool:
        """Whether it multiplies: then it is one."""
        return "norm" in self.name or self.name.startswith("rope")


_SHAPES = (
    Shape("qwen2.5-0.5b", "qwen2", 24, 896, 4864, 14, 2, 151936, 32768, 1e6, 1e-6, has_qkv_bias=True),
    Shape("qwen2.5-1.5b", "qwen2", 28, 1536, 8960, 12, 2, 151936, 32768, 1e6, 1e-6, has_qkv_bias=True),
    Shape("qwen2.5-7b", "qwen2", 28, 3584, 18944, 28, 4, 152064, 32768, 1e6, 1e-6, has_qkv_bias=True),
    Shape("llama-3.1-8b", "llama", 32, 4096, 14336, 32, 8, 128256, 131072, 5e5, 1e-5, has_qkv_bias=False),
)
_MIXES = (
    Mix("q4_k_m", 15, "Q4_K", "Q6_K"),
    Mix("q5_k_m", 17, "Q5_K", "Q6_K"),
    Mix("q8_0", 7, "Q8_0", "Q8_0"),
)
SHAPES = {shape.name: shape for shape in _SHAPES}
MIXES = {mix.name: mix for mix in _MIXES}
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Instead of blocks of 256, where a row is no multiple of that (`tensor_type_fallback`)."""
SUPER_BLOCK = 256


def find_shape(name: str) -> tuple[Shape, Mix]:
    """Return the shape and the mix of a name such as `qwen2.5-7b-q5_k_m`.

    Raises:
        StartupError: there is no such; the text lists what there is.
    """
    shape, _, mix = name.lower().rpartition("-")
    if shape not in SHAPES or mix not in MIXES:
        raise StartupError(
            f"there is no shape '{name}'; it is one of {', '.join(SHAPES)}, then - and one of {', '.join(MIXES)}"
        )
    return SHAPES[shape], MIXES[mix]


def gets_more_bits(layer: int, n_layer: int) -> bool:
    """Say which layers the quantizer spends more on: the first and last eighth, and each third between."""
    eighth = n_layer // 8
    return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2


def tensors(shape: Shape, mix: Mix, n_vocab: int) -> Iterator[Tensor]:
    """Yield all tensors, in the order in which they are written."""
    base, more = mix.base, mix.more
    # The published Qwen2.5 files have an output of their own too, also where the model ties it to the embeddings.
    yield _matrix("output.weight", n_vocab, shape.n_embd, more)
    yield _matrix("token_embd.weight", n_vocab, shape.n_embd, base)
    yield _vector("output_norm.weight", shape.n_embd)
    if shape.architecture == "llama":
        yield _vector("rope_freqs.weight", shape.head_dim // 2)
    for layer in range(shape.n_layer):
        yield from _layer(shape, f"blk.{layer}.", base, more if gets_more_bits(layer, shape.n_layer) else base)


def _layer(shape: Shape, prefix: str, base: str, more: str) -> Iterator[Tensor]:
    n_embd, n_kv = shape.n_embd, shape.n_head_kv * shape.head_dim
    yield _vector(f"{prefix}attn_norm.weight", n_embd)
    for name, n_rows, kind in [("q", n_embd, base), ("k", n_kv, base), ("v", n_kv, more)]:
        yield _matrix(f"{prefix}attn_{name}.weight", n_rows, n_embd, kind)
        if shape.has_qkv_bias:
            yield _vector(f"{prefix}attn_{name}.bias", n_rows)
    yield _matrix(f"{prefix}attn_output.weight", n_embd, n_embd, base)
    yield _vector(f"{prefix}ffn_norm.weight", n_embd)
    yield _matrix(f"{prefix}ffn_gate.weight", shape.n_ff, n_embd, base)
    yield _matrix(f"{prefix}ffn_up.weight", shape.n_ff, n_embd, base)
    yield _matrix(f"{prefix}ffn_down.weight", n_embd, shape.n_ff, more)


def _matrix(name: str, n_rows: int, n_columns: int, kind: str) -> Tensor:
    return Tensor(name, n_rows, n_columns, kind if n_columns % SUPER_BLOCK == 0 else FALLBACK.get(kind, kind))


def _vector(name: str, n: int) -> Tensor:
    return Tensor(name, 0, n, "F32")
