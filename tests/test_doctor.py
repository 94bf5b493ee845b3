"""The parts of `doctor` that need no model: its report, its advice, its bound of the speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_local.cli import advice as advice_module
from llm_local.cli import fit
from llm_local.cli.advice import Advice
from llm_local.cli.doctor_plan import add_plan
from llm_local.cli.report import Report, Section
from llm_local.config import Settings
from llm_local.errors import StartupError
from llm_local.llama import bandwidth
from llm_local.llama.bandwidth import MOST_THREADS, gpu_bandwidth, measure, threads_to_measure, tokens_per_second
from llm_local.llama.build import cpu_model, instruction_sets
from llm_local.llama.host import Cpus, Memory
from llm_local.llama.need import MIB
from llm_local.llama.place import place
from llm_local.llama.plan import make_plan
from tests.llama.shapes import context, demand, gpu, machine, shape


def changes(ask: Callable[[Advice], None], **settings: object) -> str:
    report = Report()
    ask(Advice(Settings.model_validate(settings), report))
    return " | ".join(report.changes)


def test_a_quota_below_the_cores_is_named() -> None:
    assert "quota (2.5) is below its 8 cores" in changes(lambda a: a.about_cpus(Cpus(16, 8, 2.5)))
    assert "feeds 2 threads" in changes(lambda a: a.about_cpus(Cpus(16, 8, 2.5)))
    assert changes(lambda a: a.about_cpus(Cpus(16, 8, 8.0))) == ""


def test_more_threads_than_cpus_are_named() -> None:
    assert "LLM_THREADS=8 is more than the 2 CPUs" in changes(lambda a: a.about_cpus(Cpus(2, 2, None)), threads=8)
    both = changes(lambda a: a.about_cpus(Cpus(4, 4, None)), threads=4, threads_batch=6)
    assert "LLM_THREADS_BATCH=6 is more than the 4 CPUs" in both
    assert changes(lambda a: a.about_cpus(Cpus(8, 8, None)), threads=8, threads_batch=8) == ""


def test_instruction_sets_that_are_missing_or_unused_are_named() -> None:
    assert "no AVX2" in changes(lambda a: a.about_build(["CUDA"], ["AVX"], ["AVX"]))
    unused = changes(lambda a: a.about_build(["CUDA"], ["AVX", "AVX2", "AVX512"], ["AVX", "AVX2"]))
    assert "the CPU has AVX512, and this build does not use it" in unused
    assert changes(lambda a: a.about_build(["CUDA", "CPU"], ["AVX", "AVX2"], ["AVX", "AVX2"])) == ""


def test_a_gpu_that_the_build_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(advice_module, "NVIDIA", tmp_path / "none")
    monkeypatch.setattr(advice_module, "RENDER", tmp_path / "dri")
    monkeypatch.setattr(advice_module.shutil, "which", lambda _: None)
    cpu_only = lambda a: a.about_build(["CPU"], [], [])  # noqa: E731
    assert changes(cpu_only) == ""
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri/renderD128").touch()
    assert "BACKEND=vulkan" in changes(cpu_only)
    monkeypatch.setattr(advice_module, "NVIDIA", tmp_path)
    assert "BACKEND=cuda" in changes(cpu_only)


def test_layers_that_stay_on_the_cpu_come_with_what_would_bring_them_over() -> None:
    wanted, there = demand(None, context(200_000)), machine(gpu(2500))
    says = changes(lambda a: a.about_plan(wanted, there, make_plan(wanted, there)))
    assert says.startswith("to have all 11 layers on the GPU: set LLM_CTX to at most ")
    n_ctx = int(says.split("at most ")[1].split(";")[0])
    assert make_plan(demand(None, context(n_ctx)), there).n_gpu == 11
    assert make_plan(demand(None, context(n_ctx + 256)), there).n_gpu < 11


def test_weights_larger_than_the_memory_are_named() -> None:
    wanted, there = demand(), machine(available_mib=800)
    assert "from the disk again" in changes(lambda a: a.about_plan(wanted, there, make_plan(wanted, there)))


def test_a_window_beyond_the_models_is_named() -> None:
    wanted = demand(shape(n_ctx_train=2048))
    plan = make_plan(wanted, machine())
    assert "LLM_SEQ_MAX=4096" in changes(lambda a: a.about_plan(wanted, machine(), plan), seq_max=4096)
    assert changes(lambda a: a.about_plan(wanted, machine(), plan), seq_max=2048) == ""


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "0.0.0.0"}, "set LLM_API_KEYS"),
        ({"host": "0.0.0.0", "api_keys": "a"}, ""),
        ({"host": "127.0.0.1"}, ""),
    ],
)
def test_an_open_door_is_named(settings: dict, says: str) -> None:
    found = changes(lambda a: a.about_server(), **settings)
    assert says in found
    assert bool(says) == bool(found)


def test_swap_and_a_full_disk_are_named() -> None:
    assert "swap" in changes(lambda a: a.about_memory(Memory(1, 1, 1)))
    assert changes(lambda a: a.about_memory(Memory(1, 0, 1))) == ""
    assert "0.5 GiB free" in changes(lambda a: a.about_disk(Path("m"), 2**29))
    assert changes(lambda a: a.about_disk(Path("m"), 2**40)) == ""


def test_the_report_is_aligned_and_keeps_numbers_with_their_units() -> None:
    report = Report()
    rows = [("one", "x " * 43 + "12 MiB " * 3, {"a": 1}), ("second", "b", {"b": 2})]
    report.add(Section("key", "Title", rows))
    lines = report.as_text(colour=False).splitlines()
    assert lines[0].startswith("Title     one         x x")
    assert lines[1].startswith(" " * 22)
    assert lines[2] == "          second      b"
    assert not any(line.rstrip().endswith("12") for line in lines)
    assert lines[-1] == "would start"
    assert report.as_json() == {"would_start": True, "reasons": [], "changes": [], "key": {"a": 1, "b": 2}}


def test_a_model_that_only_embeds_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.llama.test_header import FIELDS, TENSORS, write

    path = write(tmp_path / "bert.gguf", TENSORS, **FIELDS, attention__causal=False)
    settings = Settings()
    with pytest.raises(StartupError, match=r"bert.gguf \(llama\) is no decoder .* name it in LLM_EMBEDDING_MODEL"):
        fit.read_demand(fit.Weights(path), settings, fit.context_params(settings, n_pinned=0))


def test_the_report_is_as_narrow_as_a_terminal() -> None:
    report = Report()
    report.add(Section("key", "Title", [("one", "word " * 40, {})]))
    report.refuse("word " * 40)
    report.advise("word " * 40)
    for width in (60, 80, 110):
        assert width - 5 <= max(map(len, report.as_text(colour=False, width=width).splitlines())) <= width


def test_a_reason_and_a_change_are_said_once() -> None:
    report = Report()
    for _ in range(2):
        report.refuse("no room")
        report.advise("buy memory")
    assert report.as_text(colour=False).splitlines() == [
        "", "would not start", "  -  no room", "", "what to change", "  1. buy memory",
    ]  # fmt: skip


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[32mwould start" in Report().as_text(colour=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[" not in Report().as_text(colour=True)


def test_speed_is_what_the_slowest_memory_allows() -> None:
    model = shape(input_bytes=0)
    on_cpu = place(model, [context()], [], 0)
    assert tokens_per_second(on_cpu, (), 1050 * MIB) == pytest.approx(1.0)
    card = gpu(9000)
    split = place(model, [context()], [card], 6)
    assert tokens_per_second(split, (card,), 1e9) is None
    known = type(card)("GPU0", "NVIDIA GeForce RTX 4060 Ti", "CUDA", card.free_bytes, card.total_bytes)
    seconds = 500 * MIB / 1e9 + 550 * MIB / 288e9
    assert tokens_per_second(split, (known,), 1e9) == pytest.approx(1 / seconds)


@pytest.mark.parametrize(
    ("description", "gb_s"),
    [
        ("NVIDIA GeForce RTX 4060", 272),
        ("NVIDIA GeForce RTX 4060 Ti", 288),
        ("NVIDIA A100-SXM4-80GB", 1555),
        ("NVIDIA H100 80GB HBM3", 3350),
        ("Tesla T4", 320),
        ("llvmpipe", None),
    ],
)
def test_cards_are_known_by_their_names(description: str, gb_s: int | None) -> None:
    assert gpu_bandwidth(description) == (gb_s and gb_s * 1e9)


def test_bandwidth_is_measured_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BLOCK_BYTES", 2**20)
    assert all(measure(n, seconds=0.01) > 1e8 for n in (0, 1, 3))


def test_measuring_takes_a_quarter_of_a_small_memory_at_the_most() -> None:
    assert threads_to_measure(8, None) == threads_to_measure(8, 64 * 2**30) == 8
    assert threads_to_measure(100, None) == MOST_THREADS
    assert threads_to_measure(8, 512 * MIB) == 2
    assert threads_to_measure(8, 200 * MIB) == 0


def test_where_no_memory_is_left_no_speed_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_local.llama.bandwidth.measure", lambda *_: pytest.fail("it was measured"))
    report, there = Report(), machine(available_mib=200)
    add_plan(report, demand(), there, 8, Advice(Settings(), report))
    assert "not measured: too little memory is free for that" in report.as_text(colour=False)


def test_the_bound_of_the_speed_says_what_few_cores_reach_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_local.llama.bandwidth.measure", lambda *_: 84 * 1050.0 * MIB)
    report, there = Report(), machine(available_mib=20000)
    add_plan(report, demand(), there, 2, Advice(Settings(), report))
    said = " ".join(report.as_text(colour=False).split())
    most = report.as_json()["speed"]["most_tokens_per_second"]
    assert f"at most about {most:.0f} tokens a second for one answer: a prediction from memory bandwidth" in said
    assert f"where few cores compute, about half of it ({most / 2:.0f})" in said


def test_the_cpu_is_read_from_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Invented 9000\nflags\t\t: fpu avx avx2 avx512f\n")
    assert cpu_model(tmp_path) == "Invented 9000"
    assert instruction_sets(tmp_path) == ["AVX", "AVX2", "AVX512"]
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert instruction_sets(tmp_path) == ["NEON", "DOTPROD", "MATMUL_INT8"]
    assert instruction_sets(tmp_path / "nowhere") == []
