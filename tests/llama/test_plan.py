"""Does it fit, and what would: invented machines."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

import pytest

from llm_local.llama.need import MIB, Layer
from llm_local.llama.plan import Demand, Machine, ModelDemand, alternatives, explain, make_plan, size, summary
from tests.llama.shapes import context, demand, gpu, machine, shape

ON_GPU = machine(gpu(9000))


def test_auto_takes_all_layers_where_they_fit_and_none_without_a_device() -> None:
    assert make_plan(demand(), ON_GPU).n_gpu == 11
    assert make_plan(demand(), machine()).n_gpu == 0


def test_auto_stays_within_its_share_of_the_free_memory() -> None:
    counts = []
    for utilization in (1.0, 0.9, 0.5, 0.25):
        plan = make_plan(demand(utilization=utilization), machine(gpu(1200)))
        assert plan.devices[0].taken <= 1200 * MIB * utilization
        counts.append(plan.n_gpu)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 11
    assert 0 < counts[-1] < counts[1]


def test_a_longer_context_leaves_less_room_for_layers() -> None:
    short, long = (make_plan(demand(None, context(n)), machine(gpu(1200))).n_gpu for n in (1024, 32768))
    assert short > long > 0


def test_the_parts_of_what_does_not_fit_add_up() -> None:
    """Weights that stay in the file are none of them."""
    repacked = shape(layers=(Layer(100 * MIB, k_values=512, v_values=512, repacked_bytes=10 * MIB),) * 10)
    plan = make_plan(demand(repacked, context(40_000)), machine(available_mib=300))
    assert plan.host.mapped > 0
    parts, _, whole = str(plan.shortage).partition(": ")
    in_mib = {"MiB": 1.0, "GiB": 1024.0}
    sizes = [float(number) * in_mib[unit] for number, unit in re.findall(r"([\d.]+) ([MG]iB)", parts)]
    (total, unit), *_ = re.findall(r"([\d.]+) ([MG]iB)", whole)
    assert sum(sizes) == pytest.approx(float(total) * in_mib[unit], abs=60)


def test_auto_on_a_card_that_is_full_says_that_the_cpu_computes() -> None:
    plan = make_plan(demand(), machine(gpu(10)))
    assert (plan.n_gpu, plan.shortage) == (0, None)
    assert "no layer fits into the free memory of GPU0" in plan.warnings[0]


def test_a_draft_goes_to_the_gpu_whole_or_not_at_all() -> None:
    both = Demand((ModelDemand(shape(), (context(),)), ModelDemand(shape(4), (context(),))))
    roomy, tight = (make_plan(both, machine(gpu(mib))) for mib in (3000, 1300))
    assert [p.n_gpu for p in roomy.placements] == [11, 5]
    assert [p.n_gpu for p in tight.placements] == [11, 0]
    assert tight.host.kv == 4 * 2 * MIB


def test_an_explicit_number_that_does_not_fit_is_a_shortage_and_all_numbers_up_to_the_advice_fit() -> None:
    wanted, there = demand(gpu_layers=-1), machine(gpu(700))
    plan = make_plan(wanted, there)
    assert plan.shortage is not None
    assert plan.shortage.startswith("GPU0 would need weights 1.0 GiB, KV 20 MiB")
    assert plan.shortage.endswith("and 700 MiB are free")
    most = int(explain(wanted, there, plan).split("set LLM_GPU_LAYERS to at most ")[1].split()[0])
    assert make_plan(replace(wanted, gpu_layers=most), there).shortage is None
    assert make_plan(replace(wanted, gpu_layers=most + 1), there).shortage is not None


def test_an_explicit_number_may_use_all_of_the_free_memory() -> None:
    tight = machine(gpu(1150))
    assert make_plan(demand(gpu_layers=-1), tight).shortage is None
    assert make_plan(demand(), tight).n_gpu < 11


def test_the_advice_for_ctx_is_the_largest_that_fits() -> None:
    wanted, there = demand(None, context(500_000)), machine(available_mib=2048)
    ways = alternatives(wanted, there)
    most = int(next(way for way in ways if "LLM_CTX" in way).removeprefix("set LLM_CTX to at most "))
    for n_ctx, fits in ((most, True), (most + 256, False)):
        assert (make_plan(demand(None, context(n_ctx)), there).shortage is None) == fits
    assert f"{size(2048 * MIB)} are free" in explain(wanted, there, make_plan(wanted, there))


@pytest.mark.parametrize(
    ("n_ctx", "options", "advice"),
    [
        (100_000, {}, "LLM_KV_TYPE=q8_0"),
        (150_000, {}, "LLM_KV_TYPE=q4_0"),
        (40_000, {"flash_attention": False, "n_ubatch": 512}, "LLM_FLASH_ATTENTION=auto"),
    ],
)
def test_the_advice_for_cells_is_the_mildest_that_helps(n_ctx: int, options: dict, advice: str) -> None:
    ways = alternatives(demand(None, context(n_ctx, **options)), machine(available_mib=1500))
    assert [way for way in ways if way.startswith(("LLM_KV", "LLM_FLASH"))] == [advice]


def test_weights_in_their_file_may_be_larger_than_the_memory_with_a_warning() -> None:
    small = machine(available_mib=800)
    plan = make_plan(demand(), small)
    assert plan.shortage is None
    assert "reads what is missing from the disk again" in plan.warnings[0]
    for change, advice in (({"mlock": True}, "LLM_MLOCK=false"), ({"mmap": False}, "LLM_MMAP=true")):
        locked = demand(**change)
        assert make_plan(locked, small).shortage is not None
        assert advice in alternatives(locked, small)


def test_swap_turns_a_refusal_into_a_warning() -> None:
    wanted = demand(mlock=True)
    assert make_plan(wanted, machine(available_mib=800)).shortage is not None
    plan = make_plan(wanted, machine(available_mib=800, swap_mib=4096))
    assert plan.shortage is None
    assert "goes to swap" in plan.warnings[0]


def test_a_smaller_quantization_is_named_with_its_bits() -> None:
    model = shape(layers=(Layer(100 * MIB, repacked_bytes=100 * MIB),) * 10, n_params=1_100 * MIB)
    advice = alternatives(demand(model), machine(available_mib=1000))
    assert "a smaller quantization such as Q6_K (6.6 bits a weight; this file has 8.0)" in advice


def test_the_cache_of_idle_answers_can_be_what_is_too_much() -> None:
    wanted = demand(host_cache_bytes=4096 * MIB)
    assert "LLM_HOST_CACHE_MB=0" in alternatives(wanted, machine(available_mib=2000))


def test_memory_that_a_gpu_shares_with_the_cpu_counts_there_too() -> None:
    own, shared = (
        make_plan(demand(gpu_layers=-1), machine(gpu(4000, shares_host=flag), available_mib=1000))
        for flag in (False, True)
    )
    assert own.shortage is None
    assert "for the GPU" in (shared.shortage or "")


def test_where_no_single_setting_helps_the_message_says_so() -> None:
    there = machine(available_mib=100)
    plan = make_plan(demand(), there)
    assert "No single setting is enough" in explain(demand(), there, plan)


def test_a_system_that_does_not_tell_its_memory_refuses_nothing() -> None:
    plan = make_plan(demand(None, context(10**9)), Machine())
    assert (plan.shortage, plan.warnings) == (None, ())


def test_the_summary_names_layers_devices_and_free_memory() -> None:
    line = summary(ON_GPU, make_plan(demand(), ON_GPU))
    assert line.startswith("11 of 11 layers on GPU0; GPU0: weights 1.0 GiB, KV 20 MiB, compute")
    assert "of 8.8 GiB free" in line
    assert summary(machine(), make_plan(demand(), machine())).startswith(
        "all layers on the CPU; memory: weights 1.1 GiB"
    )


def test_sizes_read_well() -> None:
    assert [size(n) for n in (0, 96 * MIB, 1536 * MIB)] == ["0 MiB", "96 MiB", "1.5 GiB"]


def two_models(gpu_layers: Literal["auto"] | int) -> Demand:
    first = ModelDemand(shape(), (context(),))
    second = ModelDemand(shape(n_layer=20, largest_matrix_bytes=90 * MIB), (context(),))
    return Demand((first, second), gpu_layers=gpu_layers)


@pytest.mark.parametrize("free_mib", [500, 1300, 2000, 2500])
def test_the_number_of_layers_that_is_said_to_fit_does_fit_with_a_second_model_too(free_mib: int) -> None:
    wanted, there = two_models(-1), machine(gpu(free_mib))
    found = re.search(
        r"set LLM_GPU_LAYERS to at most (\d+) \(of 11\), or to auto", ". ".join(alternatives(wanted, there))
    )
    assert found is not None
    n = int(found[1])
    assert make_plan(two_models(n), there).shortage is None
    assert n == 11 or make_plan(two_models(n + 1), there).shortage is not None


def test_auto_leaves_room_for_the_buffers_of_a_model_that_stays_on_the_cpu() -> None:
    for free_mib in range(500, 4000, 50):
        plan = make_plan(two_models("auto"), machine(gpu(free_mib)))
        assert plan.placements[0].n_gpu > 0
        assert plan.devices[0].taken <= 0.9 * free_mib * MIB
