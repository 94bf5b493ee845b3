"""The plan against what llama.cpp reports of its buffers, on whatever devices this build has."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from pathlib import Path

import pytest

from llm_local.cli import fit
from llm_local.config import Settings
from llm_local.errors import StartupError
from llm_local.llama.backend import LlamaBackend
from llm_local.llama.header import read_shape
from llm_local.llama.model import LlamaModel
from llm_local.llama.need import MIB, Layer, kv_bytes
from llm_local.llama.place import Placement, place
from llm_local.llama.plan import Demand
from tests.llama.shapes import shape
from tests.model.conftest import Process

pytestmark = pytest.mark.model

BUFFER = re.compile(r"(?P<where>\S+)\s+(?P<what>model|KV|compute|output) buffer size\s+=\s+(?P<mib>[\d.]+) MiB")


@pytest.fixture(params=["smol", "qwen"])
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_path")


def reported(caplog: pytest.LogCaptureFixture) -> dict[tuple[str, str], float]:
    """Return the MiB of each buffer that llama.cpp has logged, by kind and device (`CPU` for all of the host's)."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for match in filter(None, map(BUFFER.search, caplog.messages)):
        where = match["where"] if re.fullmatch(r"(CUDA|Vulkan|MTL|GPUOpenCL)\d*", match["where"]) else "CPU"
        kind = match["what"] if "REPACK" not in match["where"] else "repacked"
        found[kind, where] += float(match["mib"])
    caplog.clear()
    return found


def run(path: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> tuple[Placement, dict, dict]:
    """Plan and load the generating part; return the plan, and the buffers of the weights and of the context."""
    caplog.set_level(logging.DEBUG, "llama.cpp")
    params = fit.context_params(settings, n_pinned=0)
    contexts = fit.read_demand(fit.Weights(path), settings, params).models[0].contexts[1:]
    layers = fit.choose_layers(fit.Weights(path), settings, params)
    placement = place(read_shape(path), contexts, layers.machine.devices, layers.model)
    model = LlamaModel(path, n_gpu_layers=layers.model)
    # The buffers of llama_cpp's own small context are logged, too.
    weights = {key: mib for key, mib in reported(caplog).items() if key[0] in ("model", "repacked")}
    LlamaBackend(model, params).close()
    context = reported(caplog)
    model.close()
    return placement, weights, context


CASES = [
    {},
    {"ctx": 2000, "parallel": 2},
    {"ctx": 16384, "ubatch_size": 128},
    {"kv_type": "q8_0"},
    {"kv_type": "q4_0", "parallel": 100},
    {"flash_attention": "off", "ctx": 4096},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_weights_and_kv_are_what_llama_cpp_reports_and_compute_is_rather_too_much(
    path: Path, options: dict, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(embedding=False, **options)
    placement, weights, context = run(path, settings, caplog)
    devices = fit.read_machine().devices
    for where, use in [("CPU", placement.host), *zip((d.name for d in devices), placement.devices, strict=True)]:
        assert context["KV", where] == pytest.approx(use.kv / MIB, abs=0.02)
        compute = context["compute", where] + context["output", where]
        assert compute <= use.compute / MIB * 1.02
        assert compute > use.compute / MIB * 0.5 - 2 or where != "CPU" or devices
    if not devices:
        assert weights["model", "CPU"] == pytest.approx(read_shape(path).n_bytes / MIB, abs=0.02)
        assert weights.get(("repacked", "CPU"), 0) == pytest.approx(placement.host.weights / MIB, abs=0.02)


def test_the_bytes_of_a_model_are_those_of_llama_cpp(path: Path) -> None:
    shape, model = read_shape(path), LlamaModel(path)
    assert shape.n_bytes == model.size_bytes
    assert shape.n_params == model.n_params
    assert (shape.architecture, shape.n_vocab, shape.n_embd) == (model.architecture, model.n_vocab, model.n_embd)
    assert shape.n_ctx_train == model.n_ctx_train
    model.close()


def test_the_embedding_context_and_the_draft_are_in_the_plan(smol_path: Path) -> None:
    def host_kv(weights: fit.Weights, **options: object) -> float:
        settings = Settings.model_validate({"ctx": 4096, "gpu_layers": 0, **options})
        params = fit.context_params(settings, n_pinned=0)
        plan = fit.choose_layers(weights, settings, params).plan
        return plan.host.kv / kv_bytes(read_shape(smol_path), fit.OWN_CONTEXT)

    # In units of 256 cells: llama_cpp's own context has one of them.
    assert host_kv(fit.Weights(smol_path), embedding=False) == 16 + 1
    assert host_kv(fit.Weights(smol_path)) == 16 + 1 + 8
    assert host_kv(fit.Weights(smol_path), embedding_ctx=512) == 16 + 1 + 2
    assert host_kv(fit.Weights(smol_path, draft=smol_path), embedding=False) == 2 * (16 + 1)
    assert host_kv(fit.Weights(smol_path, embedding=smol_path)) == 16 + 1 + 1 + 8


def test_the_demand_is_what_the_settings_say(smol_path: Path) -> None:
    def demand(**options: object) -> Demand:
        settings = Settings.model_validate(options)
        return fit.read_demand(fit.Weights(smol_path), settings, fit.context_params(settings, n_pinned=0))

    assert demand().utilization == 0.9
    assert demand(gpu_memory_utilization=0.5).utilization == 0.5
    assert (demand().gpu_layers, demand(gpu_layers=7).gpu_layers) == ("auto", 7)
    assert [demand(**{name: False}).stays_in_file for name in ("mmap", "mlock")] == [False, True]
    assert not demand(mlock=True).stays_in_file
    assert demand(host_cache_mb=3).host_cache_bytes == 3 * MIB
    assert demand(host_cache_mb=0).host_cache_bytes == 0
    assert demand(ctx=65536).host_cache_bytes == 96 * MIB, "more is taken only of what is left"
    recurrent = shape(layers=(Layer(MIB, state_bytes=1),))
    assert fit._planned_host_cache_bytes(Settings(host_cache_mb=3), recurrent) == 0, "its states are not kept"
    for share in (0, 1.1):
        with pytest.raises(ValueError, match="gpu_memory_utilization"):
            demand(gpu_memory_utilization=share)


def test_what_does_not_fit_is_refused_before_weights_are_read(smol_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_local.cli import load

    monkeypatch.setattr(load, "LlamaModel", lambda *_, **__: pytest.fail("weights were loaded"))
    settings = Settings(ctx=200_000_000)
    with pytest.raises(StartupError, match="set LLM_CTX to at most"):
        load.load_model(load.Weights(smol_path), settings, on_death=lambda: None)


def test_the_plan_is_one_line_of_the_log(smol_server: Process) -> None:
    lines = [line for line in smol_server.log.read_text().splitlines() if "layers on" in line]
    assert len(lines) == 1
    assert "KV" in lines[0]
    assert "compute" in lines[0]


def test_reading_a_header_is_quick(path: Path) -> None:
    began = os.times()
    read_shape(path)
    ended = os.times()
    assert ended.user + ended.system - began.user - began.system < 1
