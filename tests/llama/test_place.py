"""Where layers go and what they take, in invented numbers."""

from __future__ import annotations

import pytest

from llm_local.llama.need import MIB, Layer, compute_bytes, kv_bytes_per_token, layer_kv_bytes, mask_bytes
from llm_local.llama.place import Use, after, fitting, place, within
from tests.llama.shapes import context, gpu, shape


def test_a_layer_goes_with_its_kv_and_the_output_goes_first() -> None:
    placed = {n: place(shape(), [context()], [gpu(9000)], n) for n in (0, 1, 4, 11, -1, 99)}
    assert [p.n_gpu for p in placed.values()] == [0, 1, 4, 11, 11, 11]
    weights = {n: p.devices[0].weights // MIB for n, p in placed.items()}
    assert weights == {0: 0, 1: 50, 4: 350, 11: 1050, -1: 1050, 99: 1050}
    assert {n: p.devices[0].kv // MIB for n, p in placed.items()} == {0: 0, 1: 0, 4: 6, 11: 20, -1: 20, 99: 20}
    assert {n: p.host.kv // MIB for n, p in placed.items()} == {0: 20, 1: 20, 4: 14, 11: 0, -1: 0, 99: 0}
    assert placed[4].host.mapped == 750 * MIB
    assert placed[-1].host.mapped == 50 * MIB  # the token embeddings stay


def test_all_weights_are_somewhere_once() -> None:
    model = shape()
    for n in range(12):
        placed = place(model, [context()], [gpu(9000), gpu(3000)], n)
        assert sum(use.weights for use in placed.devices) + placed.host.mapped == model.n_bytes


def test_a_tied_head_is_copied_to_the_gpu_and_read_in_place_by_the_cpu() -> None:
    tied = shape(tied_bytes=49 * MIB)
    assert tied.n_bytes == shape().n_bytes - 49 * MIB
    on_cpu, on_gpu = (place(tied, [context()], [gpu(9000)], n) for n in (0, -1))
    assert on_cpu.host.mapped == tied.n_bytes
    assert on_gpu.devices[0].weights == 1050 * MIB
    assert on_gpu.host.mapped == 50 * MIB


def test_without_a_device_everything_is_on_the_cpu() -> None:
    placed = place(shape(), [context()], [], -1)
    assert (placed.n_gpu, placed.devices) == (0, ())
    assert placed.host.mapped == shape().n_bytes


def test_what_the_cpu_backend_copies_is_not_in_the_file_any_more_unless_there_is_a_gpu() -> None:
    model = shape(layers=(Layer(100 * MIB, repacked_bytes=60 * MIB),) * 10, output_repacked_bytes=40 * MIB)
    alone = place(model, [context()], [], 0).host
    assert (alone.weights, alone.mapped) == (640 * MIB, 460 * MIB)
    beside = place(model, [context()], [gpu(9000)], 0).host
    assert (beside.weights, beside.mapped) == (0, 1100 * MIB)
    read = place(model, [context()], [], 0, mapped=False).host
    assert (read.weights, read.mapped) == (1100 * MIB, 0)


@pytest.mark.parametrize(
    ("free", "counts"),
    [
        ((1000, 1000), (6, 5)),
        ((900, 100), (10, 1)),
        ((3000, 1000), (9, 2)),
        ((1000, 0), (11, 0)),
        ((0, 0), (11, 0)),
        ((1, 1, 2), (3, 3, 5)),
    ],
)
def test_several_gpus_share_the_layers_by_their_free_memory(free: tuple[int, ...], counts: tuple[int, ...]) -> None:
    model = shape(layers=(Layer(1),) * 10, output_bytes=1)
    placed = place(model, [context()], [gpu(mib, f"GPU{i}") for i, mib in enumerate(free)], -1)
    assert tuple(use.weights for use in placed.devices) == counts


def test_the_most_layers_that_fit_are_found_and_one_more_would_not() -> None:
    model, contexts, devices = shape(), [context()], [gpu(700)]
    placed = fitting(model, contexts, devices, [700 * MIB])
    assert 0 < placed.n_gpu < 11
    assert within(placed, [700 * MIB])
    assert not within(place(model, contexts, devices, placed.n_gpu + 1), [700 * MIB])
    assert fitting(model, contexts, [gpu(9000)], [9000 * MIB]).n_gpu == 11
    assert fitting(model, contexts, devices, [10 * MIB]).n_gpu == 0
    assert fitting(model, contexts, [], []).n_gpu == 0


def test_no_device_may_be_over_its_budget_even_when_the_sum_is_enough() -> None:
    # Equal free memory, so that each gets half of the layers; but the first has little that may be used.
    placed = fitting(shape(), [context()], [gpu(2000), gpu(2000, "GPU1")], [300 * MIB, 2000 * MIB])
    assert placed.devices[0].taken <= 300 * MIB
    assert placed.n_gpu < 6


def test_a_layer_that_stays_costs_the_gpu_a_copy_of_its_largest_matrix() -> None:
    model = shape(largest_matrix_bytes=500 * MIB)
    whole, part = (place(model, [context()], [gpu(9000)], n).devices[0].compute for n in (11, 10))
    assert part - whole == 500 * MIB
    few_rows = place(model, [context(n_ubatch=8)], [gpu(9000)], 10).devices[0].compute
    assert few_rows < 10 * MIB


def test_several_gpus_keep_the_inputs_four_times() -> None:
    one, two = (place(shape(), [context()], [gpu(9000, str(i)) for i in range(n)], -1).devices[0] for n in (1, 2))
    logits = 0  # 16 rows of 1024 are less than the layers' stage
    assert two.compute - one.compute == 3 * mask_bytes(context()) - logits


def test_a_recurrent_state_is_counted_by_sequence_and_kv_by_cell() -> None:
    assert layer_kv_bytes(Layer(1, state_bytes=1000), context(n_sequences=7)) == 7000
    assert layer_kv_bytes(Layer(1, k_values=10, v_values=6), context(n_ctx=1000)) == 1024 * 16 * 2  # rounded up to 256
    assert layer_kv_bytes(Layer(1, k_values=32, v_values=32), context(kv_type="q8_0")) == 1024 * 68
    assert kv_bytes_per_token(shape()) == 10 * 2048
    assert kv_bytes_per_token(shape(), "q4_0") == 10 * 1024 * 18 / 32


def test_without_flash_attention_the_scores_of_all_heads_are_in_memory() -> None:
    with_it, without = (compute_bytes(shape(), context(n_ctx=32768, flash_attention=on)) for on in (True, False))
    assert without - with_it > 128 * 32768 * 8 * 4 * 0.9


def test_what_is_taken_is_not_free_for_the_next() -> None:
    devices = [gpu(2000), gpu(1000, "GPU1")]
    placed = place(shape(), [context()], devices, -1)
    left = after(devices, placed)
    assert [d.free_bytes for d in left] == [
        d.free_bytes - use.taken for d, use in zip(devices, placed.devices, strict=True)
    ]
    assert Use(1, 2, 3, 4, 5) + Use(10, 20, 30, 40, 50) == Use(11, 22, 33, 44, 55)


def test_of_experts_a_token_reads_its_share() -> None:
    model = shape(layers=(Layer(100, expert_bytes=80),) * 2, output_bytes=10, expert_share=0.25)
    placed = place(model, [context()], [gpu(9000)], 2)
    assert (placed.devices[0].read, placed.host.read) == (40 + 10, 40)
