"""How many bytes a model and its contexts need: plain arithmetic on plain numbers, nothing of llama.cpp is called.

llama.cpp counts one unit more than there are layers: the output (norm and head). The input (token embeddings) always
stays in the host's memory. What is said here of llama.cpp is true of the version in pyproject.toml, and tests on real
weights compare it with what that version reports.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20

KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of one value: ggml's q8_0 has 34 bytes for 32 values, q4_0 has 18."""

CELL_BLOCK = 256
"""llama.cpp rounds the cells of a context up to a multiple of this (llama-context.cpp)."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer holds.

    Attributes:
        n_bytes: its weights.
        repacked_bytes: those of them that the CPU backend copies into an order of its own.
        expert_bytes: those of them that belong to experts, of which a token uses a part.
        k_values: numbers that K has for each token, 0 where the layer has no attention.
        v_values: the same of V.
        state_bytes: of a recurrent state, for each sequence.
    """

    n_bytes: int
    repacked_bytes: int = 0
    expert_bytes: int = 0
    k_values: int = 0
    v_values: int = 0
    state_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model in plain numbers.

    Attributes:
        input_bytes: token embeddings and what belongs to no layer.
        output_bytes: norm and head.
        tied_bytes: the part of them that is the token embeddings once more, of which a GPU gets a copy.
        n_ff: rows that one token has between the two halves of a layer, all experts that it uses together.
        q_width: heads times head size.
        largest_matrix_bytes: of those in layers.
        expert_share: the part of the experts that one token uses; 1 where there are none.
    """

    name: str
    architecture: str
    layers: tuple[Layer, ...]
    input_bytes: int
    output_bytes: int
    output_repacked_bytes: int
    tied_bytes: int
    n_params: int
    n_vocab: int
    n_embd: int
    n_ff: int
    n_head: int
    q_width: int
    n_ctx_train: int
    largest_matrix_bytes: int
    expert_share: float = 1.0
    has_logits: bool = True
    sliding_window: int = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors in the file."""
        return self.input_bytes + self.output_bytes - self.tied_bytes + sum(layer.n_bytes for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """What the quantization comes to."""
        return 8 * self.n_bytes / max(self.n_params, 1)

    def read_bytes(self, layer: Layer) -> int:
        """Return the bytes of a layer's weights that computing one token reads."""
        return layer.n_bytes - int((1 - self.expert_share) * layer.expert_bytes)


@dataclass(frozen=True, slots=True)
class ContextSize:
    """What a context is created with.

    Attributes:
        n_ctx: cells.
        n_ubatch: rows of one pass.
        n_outputs: most rows with logits.
        n_sequences: most sequences resident.
        follows_ctx: whether its cells and their type are those of the settings (the generation contexts).
    """

    n_ctx: int
    n_ubatch: int
    n_outputs: int
    n_sequences: int = 1
    kv_type: str = "f16"
    flash_attention: bool = True
    follows_ctx: bool = False

    @property
    def n_cells(self) -> int:
        """Cells that llama.cpp makes of `n_ctx`."""
        return -(-self.n_ctx // CELL_BLOCK) * CELL_BLOCK


def layer_kv_bytes(layer: Layer, context: ContextSize) -> int:
    """Return the bytes of one layer's KV cells and recurrent states.

    All layers get all cells: `swa_full` is set, so that a sliding window saves nothing.
    """
    values = layer.k_values + layer.v_values
    return int(context.n_cells * values * KV_BYTES[context.kv_type]) + layer.state_bytes * context.n_sequences


def kv_bytes(shape: ModelShape, context: ContextSize) -> int:
    """Return the bytes of all layers' cells."""
    return sum(layer_kv_bytes(layer, context) for layer in shape.layers)


def kv_bytes_per_token(shape: ModelShape, kv_type: str = "f16") -> int:
    """Return the bytes of one KV cell: those of K and V in all layers."""
    return int(sum(layer.k_values + layer.v_values for layer in shape.layers) * KV_BYTES[kv_type])


def mask_bytes(context: ContextSize) -> int:
    """Return the bytes of the attention mask: f16 with flash attention, else f32, and 8 for each cell's index."""
    return context.n_cells * (min(context.n_ubatch, context.n_ctx) * (2 if context.flash_attention else 4) + 8)


def compute_bytes(shape: ModelShape, context: ContextSize, *, layers: bool = True, output: bool = True) -> int:
    """Return about how many bytes the buffers of one pass take, rather too many than too few.

    ggml reuses memory along the graph, so that the largest stage counts. The factors come from what llama.cpp reports
    for SmolLM2 and Qwen2.5 with 256 to 32,768 cells and 32 to 512 rows.

    Args:
        layers: whether layers are computed on this device.
        output: whether the logits are.
    """
    rows = min(context.n_ubatch, context.n_ctx)
    width = max(shape.n_embd, shape.q_width)
    stages = [rows * shape.n_embd * 4]
    if layers:
        scores = 0 if context.flash_attention else rows * context.n_cells * shape.n_head * 4
        stages.append(mask_bytes(context) + rows * (3 * shape.n_ff + 5 * width) * 4)
        stages.append(mask_bytes(context) + rows * 7 * width * 4 + scores)
    if output and shape.has_logits:
        n_outputs = min(rows, context.n_outputs)
        stages.append(n_outputs * (shape.n_vocab + 2 * shape.n_embd) * 4 + rows * 2 * shape.n_embd * 4)
    return max(stages) + MIB


def logits_bytes(shape: ModelShape, context: ContextSize) -> int:
    """Return the bytes of the logits that a context keeps in the host's memory for its callers."""
    return max(context.n_outputs, context.n_sequences) * (shape.n_vocab if shape.has_logits else shape.n_embd) * 4
