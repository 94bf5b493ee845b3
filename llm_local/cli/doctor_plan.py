"""The part of `doctor` about the model: what it is, where it would go, how fast it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_local.cli.advice import Advice
from llm_local.cli.report import Report, Row, Section
from llm_local.config import Settings
from llm_local.llama import bandwidth
from llm_local.llama.need import ModelShape, kv_bytes_per_token
from llm_local.llama.place import Use
from llm_local.llama.plan import Demand, Machine, Plan, make_plan, size


def add_model(report: Report, path: Path, shape: ModelShape, settings: Settings) -> None:
    """Add what the header says."""
    per_token = kv_bytes_per_token(shape, settings.kv_type)
    facts = {
        "path": str(path),
        "architecture": shape.architecture,
        "n_layers": len(shape.layers),
        "n_params": shape.n_params,
        "size_bytes": shape.n_bytes,
        "bits_per_weight": round(shape.bits_per_weight, 2),
        "n_ctx_train": shape.n_ctx_train,
        "n_vocab": shape.n_vocab,
        "kv_bytes_per_token": per_token,
    }
    window = min(settings.window, shape.n_ctx_train or settings.window)
    slide = " (a sliding window saves none of it here)" if shape.sliding_window else ""
    kind = f"{shape.architecture}, {len(shape.layers)} layers, {_count(shape.n_params)} weights"
    rows: list[Row] = [
        ("file", str(path), facts),
        ("kind", f"{kind}, {size(shape.n_bytes)} ({shape.bits_per_weight:.1f} bits a weight)", {}),
        (
            "context",
            f"{settings.ctx} cells for {settings.parallel} answers at once, one of up to {window} tokens "
            f"(trained for {shape.n_ctx_train})",
            {"window": window},
        ),
        ("KV", f"{per_token / 1024:.1f} KiB a token in {settings.kv_type}{slide}", {}),
        ("vocabulary", f"{shape.n_vocab} tokens", {}),
    ]
    report.add(Section("model", "Model", rows))


def add_plan(report: Report, demand: Demand, machine: Machine, n_threads: int, advice: Advice) -> None:
    """Add the plan and the speed that memory bandwidth allows."""
    plan = make_plan(demand, machine)
    main = plan.placements[0]
    where = f"{main.n_gpu} of {main.n_units} on a GPU" if main.n_gpu else f"all {main.n_units} on the CPU"
    rows: list[Row] = [
        ("layers", f"{where} (the output counts as one)", {"gpu_layers": main.n_gpu, "layers": main.n_units})
    ]
    for device, use in zip(machine.devices, plan.devices, strict=True):
        budget = f"of {size(device.free_bytes)} free"
        if demand.gpu_layers == "auto":
            budget += f", of which LLM_GPU_MEMORY_UTILIZATION={demand.utilization:g} may be used"
        rows.append((device.name, f"{_use(use)}: {size(use.taken)} {budget}", {device.name: _facts(use)}))
    rows.append(
        ("memory", f"{_use(plan.host)}, process and cache {size(plan.other_bytes)}{_free(machine)}",
         {"host": _facts(plan.host), "other_bytes": plan.other_bytes})
    )  # fmt: skip
    report.add(Section("plan", "Plan", rows))
    report.add(Section("speed", "Speed", _speed(plan, machine, n_threads)))
    advice.about_plan(demand, machine, plan)


def _speed(plan: Plan, machine: Machine, n_threads: int) -> list[Row]:
    main = plan.placements[0]
    n_threads = bandwidth.threads_to_measure(n_threads, machine.memory.available if machine.memory else None)
    if not n_threads:
        return [("", "not measured: too little memory is free for that", {"most_tokens_per_second": None})]
    measured = bandwidth.measure(n_threads)
    most = bandwidth.tokens_per_second(main, machine.devices, measured)
    facts = {"host_bytes_per_second": round(measured), "most_tokens_per_second": most and round(most, 1)}
    read = main.host.read + sum(use.read for use in main.devices)
    basis = (
        f"a token reads {size(read)} of weights; {n_threads} threads move {measured / 1e9:.1f} GB/s here, "
        "measured in 0.3 s"
    )
    known = [
        f"{device.name} {speed / 1e9:.0f} GB/s by its data sheet"
        for device in machine.devices
        if main.n_gpu and (speed := bandwidth.gpu_bandwidth(device.description))
    ]
    if most is None:
        text = "not predicted: the memory bandwidth of this GPU is not in the table of known cards"
    else:
        text = f"at most about {most:.0f} tokens a second for one answer: a prediction from memory bandwidth"
        if not main.n_gpu:
            # Measured on two cores of an AVX-512 server: 48 of 95 with Qwen2.5-0.5B in Q4_K_M.
            text += (
                f"; where few cores compute, about half of it ({most / 2:.0f}), as arithmetic takes longer than reading"
            )
    return [("", text, facts), ("", "; ".join([basis, *known]), {})]


def _use(use: Use) -> str:
    parts = []
    if use.weights:
        parts.append(f"weights {size(use.weights)}")
    if use.mapped:
        parts.append(f"weights {size(use.mapped)} mapped from the file")
    if use.kv:
        parts.append(f"KV {size(use.kv)}")
    return ", ".join([*parts, f"compute {size(use.compute)}"])


def _facts(use: Use) -> dict[str, Any]:
    return {
        "weights_bytes": use.weights, "mapped_bytes": use.mapped, "kv_bytes": use.kv, "compute_bytes": use.compute,
    }  # fmt: skip


def _free(machine: Machine) -> str:
    return f": of {size(machine.memory.available)} free" if machine.memory else ""


def _count(n: int) -> str:
    return f"{n / 1e9:.1f} billion" if n >= 1e9 else f"{n / 1e6:.0f} million"
