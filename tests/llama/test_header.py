"""Headers of small invented GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_local.errors import StartupError
from llm_local.llama import header
from llm_local.llama.header import IQ4_NL, MXFP4, Q2_K, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, repacked_types
from llm_local.llama.need import kv_bytes_per_token

gguf = pytest.importorskip("gguf")


def write(path: Path, tensors: dict[str, tuple[int, ...]], **fields: Any) -> Path:
    """Write a GGUF of f32 zeros; shapes are numpy's, rows first."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        key = f"llama.{name.replace('__', '.')}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_token_list(["a", "b", "c", "d"])
    for name, sizes in tensors.items():
        writer.add_tensor(name, np.zeros(sizes, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FIELDS: dict[str, Any] = {
    "block_count": 2,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention__head_count": 4,
    "attention__head_count_kv": 2,
    "context_length": 2048,
}
TENSORS = {
    "token_embd.weight": (4, 64),
    "blk.0.ffn_up.weight": (128, 64),
    "blk.1.ffn_up.weight": (128, 64),
    "blk.1.attn_q.weight": (64, 64),
    "output_norm.weight": (64,),
    "output.weight": (4, 64),
}


def test_weights_are_counted_by_layer_and_outside_of_layers(tmp_path: Path) -> None:
    shape = header.read_shape(write(tmp_path / "m.gguf", TENSORS, **FIELDS))
    assert [layer.n_bytes for layer in shape.layers] == [128 * 64 * 4, 192 * 64 * 4]
    assert (shape.input_bytes, shape.output_bytes, shape.tied_bytes) == (4 * 64 * 4, 5 * 64 * 4, 0)
    assert shape.n_params == (4 + 128 + 128 + 64 + 1 + 4) * 64
    assert shape.n_bytes == shape.n_params * 4
    assert (shape.n_vocab, shape.n_embd, shape.n_ff, shape.n_head, shape.n_ctx_train) == (4, 64, 128, 4, 2048)
    assert shape.largest_matrix_bytes == 128 * 64 * 4
    assert kv_bytes_per_token(shape) == 2 * 2 * (2 * 16) * 2


def test_without_a_head_of_its_own_the_embeddings_are_the_head(tmp_path: Path) -> None:
    tensors = {name: size for name, size in TENSORS.items() if name != "output.weight"}
    shape = header.read_shape(write(tmp_path / "m.gguf", tensors, **FIELDS))
    assert (shape.output_bytes, shape.tied_bytes) == (5 * 64 * 4, 4 * 64 * 4)
    assert shape.n_bytes == shape.n_params * 4


def test_kv_heads_may_differ_between_layers_and_k_from_v(tmp_path: Path) -> None:
    fields = {**FIELDS, "attention__head_count_kv": [4, 0], "attention__key_length": 32, "attention__value_length": 8}
    shape = header.read_shape(write(tmp_path / "m.gguf", TENSORS, **fields))
    assert [(layer.k_values, layer.v_values) for layer in shape.layers] == [(128, 32), (0, 0)]
    assert shape.q_width == 128


def test_a_model_that_looks_both_ways_has_no_kv_and_no_logits(tmp_path: Path) -> None:
    shape = header.read_shape(write(tmp_path / "m.gguf", TENSORS, **FIELDS, attention__causal=False))
    assert kv_bytes_per_token(shape) == 0
    assert not shape.has_logits


def test_of_experts_the_share_that_a_token_uses_is_known(tmp_path: Path) -> None:
    tensors = {**TENSORS, "blk.0.ffn_up_exps.weight": (8, 32, 64)}
    fields = {**FIELDS, "expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 96}
    shape = header.read_shape(write(tmp_path / "m.gguf", tensors, **fields))
    assert (shape.expert_share, shape.n_ff) == (0.25, 192)
    assert shape.layers[0].expert_bytes == 8 * 32 * 64 * 4
    assert shape.read_bytes(shape.layers[0]) == (128 * 64 + 8 * 32 * 64 // 4) * 4


def test_a_recurrent_layer_has_a_state(tmp_path: Path) -> None:
    tensors = {**TENSORS, "blk.0.ssm_in.weight": (8, 64)}
    fields = {**FIELDS, "ssm__inner_size": 128, "ssm__state_size": 16, "ssm__conv_kernel": 4}
    shape = header.read_shape(write(tmp_path / "m.gguf", tensors, **fields))
    assert [layer.state_bytes for layer in shape.layers] == [4 * (3 * 128 + 16 * 128), 0]


def test_all_shards_are_read(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    names = list(TENSORS)
    write(first, {name: TENSORS[name] for name in names[:3]}, **FIELDS)
    write(second, {name: TENSORS[name] for name in names[3:]})
    whole = header.read_shape(write(tmp_path / "m.gguf", TENSORS, **FIELDS))
    assert header.read_shape(first).layers == whole.layers
    assert header.read_shape(first).n_bytes == whole.n_bytes
    second.unlink()
    with pytest.raises(StartupError, match=r"no such file: .*00002-of-00002"):
        header.read_shape(first)


@pytest.mark.parametrize("length", [0, 3, 5, 30, 200])
def test_a_header_that_is_cut_off_is_one_line(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "m.gguf", TENSORS, **FIELDS)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StartupError, match=r"is not a GGUF file|cannot load"):
        header.read_shape(path)


@pytest.mark.parametrize("n_layer", [0, 513, 20_000_000, 2**32 - 1])
def test_a_number_of_layers_that_llama_cpp_does_not_load_is_refused_at_once(tmp_path: Path, n_layer: int) -> None:
    path = write(tmp_path / "m.gguf", TENSORS, **{**FIELDS, "block_count": n_layer})
    with pytest.raises(StartupError, match=rf"cannot load m.gguf: its header says that it has {n_layer} layers of"):
        header.read_shape(path)


def test_a_file_that_ends_before_its_weights_do_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", TENSORS, **FIELDS)
    whole = path.read_bytes()
    with header._open(path) as file:
        needs = file.n_bytes
    path.write_bytes(whole[:needs])
    header.read_shape(path)
    path.write_bytes(whole[: needs - 1])
    with pytest.raises(StartupError, match=rf"m.gguf is cut off: it has {needs - 1} bytes of {needs}; remove it"):
        header.read_shape(path)


@pytest.mark.parametrize(
    ("info", "types"),
    [
        ("CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | REPACK = 1 | ", {Q4_0, Q4_K, IQ4_NL, MXFP4, Q2_K}),
        ("CPU : AVX2 = 1 | F16C = 1 | REPACK = 1", {Q4_0, Q4_K, IQ4_NL, MXFP4}),
        ("CPU : AVX2 = 0 | SSE3 = 1 | REPACK = 1", set()),
        ("CPU : AVX2 = 1 | AVX512 = 1", set()),
        ("CPU : NEON = 1 | DOTPROD = 1 | REPACK = 1", {Q4_0, Q4_K, IQ4_NL, MXFP4, Q8_0, Q5_K, Q6_K}),
        ("CPU : NEON = 1 | ARM_FMA = 1 | REPACK = 1", set()),
        ("", set()),
    ],
)
def test_what_is_repacked_depends_on_the_cpu_and_the_build(info: str, types: set[int]) -> None:
    assert repacked_types(info) == types
