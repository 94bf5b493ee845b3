"""A synthetic GGUF loads in the real library, takes the chat template of its vocabulary, and generates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_local.bench.shapes import MIXES, Shape

pytestmark = pytest.mark.model
pytest.importorskip("gguf")


@pytest.mark.parametrize(
    ("architecture", "n_embd", "mix"),
    # Rows of 288 are no multiple of 256: the types that the quantizer falls back to are loaded too.
    [("llama", 256, "q4_k_m"), ("qwen2", 256, "q5_k_m"), ("qwen2", 288, "q5_k_m")],
)
def test_a_tiny_shape_loads_and_its_logits_are_finite(
    smol_path: Path, tmp_path: Path, architecture: str, n_embd: int, mix: str
) -> None:
    import llama_cpp

    from llm_local.bench.synthetic import synthesize

    shape = Shape("tiny", architecture, 4, n_embd, 512, 4, 2, 50000, 512, 1e4, 1e-5, architecture == "qwen2")
    out = tmp_path / "tiny.gguf"
    synthesize(shape, MIXES[mix], smol_path, out)
    model = llama_cpp.Llama(str(out), n_ctx=64, n_batch=32, n_threads=1, verbose=False)
    try:
        assert model.n_vocab() == 50000
        assert "<|im_start|>" in model.metadata["tokenizer.chat_template"]
        answer = model.create_completion("Hello", max_tokens=4, temperature=0.0, logit_bias={0: -100, 2: -100})
        assert answer["usage"]["completion_tokens"] == 4
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), (50000,))
        assert np.isfinite(logits).all()
        assert 0.05 < logits.std() < 3
    finally:
        model.close()
