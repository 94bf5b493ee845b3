"""GGUF files with a real shape and random weights: sizes, types, scales, and what can go wrong."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llm_local.bench import synthetic
from llm_local.bench.blocks import LAYOUTS, SIGMA, random_blocks
from llm_local.bench.shapes import MIXES, SHAPES, Shape, find_shape, tensors
from llm_local.bench.synthetic import read_tokenizer, size_of, synthesize
from llm_local.cli import main
from llm_local.errors import StartupError

gguf = pytest.importorskip("gguf")

TINY = Shape("tiny", "llama", 3, 256, 512, 4, 2, 40, 128, 1e4, 1e-5, has_qkv_bias=False)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF with a vocabulary of 30 tokens and nothing else."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(30)])
    writer.add_token_types([1] * 30)
    writer.add_eos_token_id(3)
    writer.add_chat_template("{{ messages }} шаблон")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", LAYOUTS)
def test_weights_have_mean_zero_and_the_deviation_of_a_new_model(kind: str) -> None:
    blocks = random_blocks(np.random.default_rng(1), kind, 2000)
    weights = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert weights.shape == (2000, LAYOUTS[kind].n_weights)
    assert weights.std() == pytest.approx(SIGMA, rel=0.05)
    assert abs(weights.mean()) < 0.1 * SIGMA


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_block_is_as_large_as_ggml_says(kind: str) -> None:
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert (LAYOUTS[kind].n_weights, LAYOUTS[kind].n_bytes) == tuple(sizes)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    # Of the published files; those of Qwen2.5-7B are 5.44 and 4.68 GB, of Llama-3.1-8B 5.73 GB.
    [
        ("qwen2.5-0.5b-q4_k_m", 0.485),
        ("qwen2.5-1.5b-q4_k_m", 1.111),
        ("qwen2.5-7b-q5_k_m", 5.439),
        ("qwen2.5-7b-q4_k_m", 4.677),
        ("llama-3.1-8b-q5_k_m", 5.725),
    ],
)
def test_a_shape_is_as_large_as_the_published_file_less_its_metadata(name: str, gigabytes: float) -> None:
    shape, mix = find_shape(name)
    size = sum(size_of(tensor) for tensor in tensors(shape, mix, shape.n_vocab))
    assert size / 1e9 == pytest.approx(gigabytes, abs=0.003)


def test_half_of_the_layers_get_more_bits_for_values_and_down_projections() -> None:
    shape, mix = find_shape("qwen2.5-7b-q5_k_m")
    kinds = Counter((t.name.split(".")[-2], t.type) for t in tensors(shape, mix, shape.n_vocab) if t.n_rows)
    assert (kinds["attn_v", "Q6_K"], kinds["attn_v", "Q5_K"]) == (14, 14)
    assert (kinds["ffn_down", "Q6_K"], kinds["ffn_down", "Q5_K"]) == (14, 14)
    assert kinds["ffn_up", "Q5_K"] == 28
    assert (kinds["output", "Q6_K"], kinds["token_embd", "Q5_K"]) == (1, 1)


def test_rows_that_are_no_multiple_of_256_fall_back_as_in_the_published_file() -> None:
    shape, mix = find_shape("qwen2.5-0.5b-q4_k_m")
    kinds = {t.name: t.type for t in tensors(shape, mix, shape.n_vocab)}
    found = [kinds[name] for name in ("output.weight", "token_embd.weight", "blk.0.attn_v.weight")]
    assert found == ["Q8_0", "Q5_0", "Q8_0"]
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.3.ffn_down.weight"]) == ("Q6_K", "Q4_K")


def test_a_file_has_the_shape_and_the_vocabulary_filled_up(vocabulary: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.gguf"
    told: list[int] = []
    size = synthesize(TINY, MIXES["q5_k_m"], vocabulary, out, on_bytes=told.append)
    assert out.stat().st_size == size
    reader = gguf.GGUFReader(out)
    assert reader.fields["llama.block_count"].contents() == 3
    assert reader.fields["general.file_type"].contents() == 17
    shapes = {tensor.name: (tuple(tensor.shape), tensor.tensor_type.name) for tensor in reader.tensors}
    assert shapes["blk.2.ffn_down.weight"] == ((512, 256), "Q6_K")
    assert shapes["token_embd.weight"] == ((256, 40), "Q5_K")
    assert sum(told) == sum(int(tensor.n_bytes) for tensor in reader.tensors)
    norm = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    assert (norm.data == 1).all()
    tokenizer = read_tokenizer(out)
    assert tokenizer["tokenizer.ggml.tokens"].value[28:32] == ["t28", "t29", "[PAD30]", "[PAD31]"]
    assert tokenizer["tokenizer.ggml.token_type"].value[-10:] == [5] * 10
    assert tokenizer["tokenizer.chat_template"].value == "{{ messages }} шаблон"
    assert tokenizer["tokenizer.ggml.eos_token_id"].value == 3


def test_no_piece_is_larger_than_the_bound(monkeypatch: pytest.MonkeyPatch, vocabulary: Path, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole.gguf", tmp_path / "pieces.gguf"
    told: list[int] = []
    synthesize(TINY, MIXES["q4_k_m"], vocabulary, whole)
    monkeypatch.setattr(synthetic, "CHUNK_BYTES", 20_000)
    synthesize(TINY, MIXES["q4_k_m"], vocabulary, pieces, on_bytes=told.append)
    assert max(told) <= 20_000
    assert whole.stat().st_size == pieces.stat().st_size


def test_a_file_that_exists_is_left_alone(vocabulary: Path, tmp_path: Path) -> None:
    out = tmp_path / "precious.gguf"
    out.write_text("weights")
    with pytest.raises(StartupError, match="exists already"):
        synthesize(TINY, MIXES["q8_0"], vocabulary, out)
    assert out.read_text() == "weights"


def test_a_full_disk_is_noticed_before(vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(StartupError, match=r"needs 0.0 GB, and .* has 0.0 GB free"):
        synthesize(TINY, MIXES["q8_0"], vocabulary, tmp_path / "tiny.gguf")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_file_does_not_stay(vocabulary: Path, tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(TINY, MIXES["q8_0"], vocabulary, tmp_path / "tiny.gguf", on_bytes=interrupt)
    assert not list(tmp_path.iterdir())


def test_what_has_no_vocabulary_is_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("hello, this is text")
    for path in (text, tmp_path / "nothing.gguf"):
        with pytest.raises(StartupError, match="cannot read the vocabulary"):
            synthesize(TINY, MIXES["q8_0"], path, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--synthetic", "qwen2.5-7b"], "there is no shape 'qwen2.5-7b'; it is one of qwen2.5-0.5b"),
        (["--synthetic", "qwen2.5-7b-q5_k_m"], "needs --vocabulary GGUF and --out GGUF"),
        (["--synthetic", "QWEN2.5-7B-Q5_K_M", "--vocabulary", "/no.gguf", "--out", "/no/x.gguf"], "cannot read"),
    ],
)
def test_the_command_says_what_is_missing(arguments: list[str], says: str, capsys: pytest.CaptureFixture[Any]) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_every_shape_has_heads_that_divide_it() -> None:
    for shape in SHAPES.values():
        assert shape.n_embd == shape.n_head * shape.head_dim
        assert shape.n_head % shape.n_head_kv == 0
