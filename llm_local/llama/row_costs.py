"""What a row's logits and the cells of its context cost beside the rest of the row: estimates from the model's shape.

The engine learns the cells' part from its own decodes; this is what it begins with.
"""

from __future__ import annotations

import llama_cpp

from llm_local.engine.step_costs import RowCosts
from llm_local.llama.model import LlamaModel

CPU_TILE = 64
"""GGML_FA_TILE_Q of ggml-cpu: from so many rows on attention over f16 cells is computed by the tile."""

CPU_CELL, CPU_TILED_CELL = 9.0, 3.3
"""How many times as long as one of the weights' an operation of attention takes. Measured on two cores of an AMD EPYC
with Qwen2.5-0.5B Q4_K_M at 1,000 to 4,000 cells (by one thread alone 6.8 and 2.3); see docs/performance.md."""


def row_costs(model: LlamaModel, *, kv_type: str, flash_attention: str) -> RowCosts:
    """Return the estimates for a model's generation context."""
    head = model.n_vocab * model.n_embd
    rest = max(model.n_params - head, head)
    n_heads = max(llama_cpp.llama_model_n_head(model.model), 1)
    head_size = int(model.metadata.get(f"{model.architecture}.attention.key_length", model.n_embd // n_heads))
    # A weight is one multiplication and one addition for each row; so is each value of a key and of a value.
    cell = 2 * llama_cpp.llama_model_n_layer(model.model) * n_heads * head_size / rest
    if model.on_gpu or flash_attention == "off":
        return RowCosts(head / rest, cell, cell, tile=0)
    tile = CPU_TILE if kv_type == "f16" else 0
    return RowCosts(head / rest, CPU_CELL * cell, CPU_TILED_CELL * cell, tile)
