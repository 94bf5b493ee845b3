"""Whether models fit: plain numbers."""

from __future__ import annotations

import pytest

from llm_local.models.memory import OVERHEAD_BYTES, Need, fits

GB = 10**9
QWEN_7B = Need(weights=5_444_831_360, layers=28, kv=57344 * 8192)


def test_a_model_needs_weights_cache_and_overhead() -> None:
    assert QWEN_7B.total == 5_444_831_360 + 469_762_048 + OVERHEAD_BYTES
    assert fits(QWEN_7B, QWEN_7B.total).in_memory
    assert fits(QWEN_7B, QWEN_7B.total - 1).in_memory is False
    assert fits(QWEN_7B, None).in_memory is None


@pytest.mark.parametrize(
    ("free", "layers"), [((8 * GB,), 29), ((4 * GB,), 15), ((4 * GB, 4 * GB), 29), ((10**8,), 0), ((), None)]
)
def test_as_many_layers_go_to_the_gpus_as_fit(free: tuple[int, ...], layers: int | None) -> None:
    fit = fits(QWEN_7B, 16 * GB, free)
    assert (fit.gpu_layers, fit.n_layers) == (layers, 29)


def test_less_of_a_gpu_may_be_used() -> None:
    assert fits(QWEN_7B, 16 * GB, (8 * GB,), gpu_utilization=0.5).gpu_layers == 17


def test_a_model_of_unknown_layers_has_no_answer_for_the_gpu() -> None:
    assert fits(Need(GB), 16 * GB, (8 * GB,)).gpu_layers is None


def test_an_empty_file_of_a_known_encoder_has_an_answer_too() -> None:
    assert fits(Need(0, layers=6), 16 * GB, (8 * GB,)).gpu_layers == 7
