"""`llm-local models`: what is known and what is there, and what of it fits here."""

from __future__ import annotations

import json
from typing import Any

from llm_local.cli.native import check_native
from llm_local.config import Settings
from llm_local.models.inventory import Room, Row, inventory
from llm_local.models.progress import size

STATES = {"here": "yes", "cache": "hub cache", "partly": "partly", "no": "-"}


def models(settings: Settings, *, as_json: bool = False) -> int:
    """Print the table, or JSON; return the exit code."""
    check_native()
    from llm_local.cli.fit import read_machine

    machine = read_machine()
    room = Room(
        settings.ctx,
        settings.kv_type,
        machine.memory.available if machine.memory is not None else None,
        tuple(device.free_bytes for device in machine.devices),
        settings.gpu_memory_utilization,
    )
    rows = inventory(settings.models_dir, room)
    print(json.dumps(_document(rows, room, settings), indent=2) if as_json else _text(rows, room, settings))
    return 0


def _text(rows: list[Row], room: Room, settings: Settings) -> str:
    head = ("model", "quantization", "size", "on disk", "needs", "fits in memory", "on this GPU")
    cells = [head, *[_cells(row, room) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    ram = "unknown" if room.free_ram is None else size(room.free_ram)
    gpus = ", ".join(size(free) for free in room.free_gpus) or "none that this build can use"
    return "\n".join(
        [
            *lines,
            "",
            f"free memory {ram}; GPU {gpus}. needs: weights, a KV cache of {room.ctx} tokens "
            f"(LLM_CTX, {room.kv_type}) and buffers, about.",
            f"* what the bare name means; ~ approximate. Models folder: {settings.models_dir}/. "
            "Fetch one: llm-local pull NAME",
        ]
    )


def _cells(row: Row, room: Room) -> tuple[str, ...]:
    about = "~" if row.approximate else ""
    fit = row.fit
    needs = size(fit.need.total) if row.model is not None else f"over {size(fit.need.total)}"
    return (
        row.name,
        f"{row.quantization or '?'}{'*' if row.default else ''}",
        f"{about}{size(row.bytes)}",
        STATES[row.state],
        needs,
        {True: "yes", False: "no", None: "?"}[fit.in_memory],
        _gpu(row, room),
    )


def _gpu(row: Row, room: Room) -> str:
    fit = row.fit
    if not room.free_gpus:
        return "-"
    if fit.gpu_layers is None:
        return "?"
    return "yes" if fit.gpu_layers == fit.n_layers else f"{fit.gpu_layers} of {fit.n_layers} layers"


def _document(rows: list[Row], room: Room, settings: Settings) -> dict[str, Any]:
    return {
        "models_dir": str(settings.models_dir),
        "ctx": room.ctx,
        "kv_type": room.kv_type,
        "free_ram_bytes": room.free_ram,
        "free_gpu_bytes": list(room.free_gpus),
        "models": [_entry(row) for row in rows],
    }


def _entry(row: Row) -> dict[str, Any]:
    model, fit = row.model, row.fit
    return {
        "name": row.name,
        "quantization": row.quantization,
        "default": row.default,
        "role": row.role or None,
        "about": model.about if model else None,
        "licence": model.licence if model else None,
        "repository": model.repository if model else None,
        "chat_template": model.chat_template if model else None,
        "bytes": row.bytes,
        "approximate": row.approximate,
        "state": row.state,
        "path": str(row.path) if row.path else None,
        "needs_bytes": fit.need.total,
        "kv_bytes": fit.need.kv,
        "fits_in_memory": fit.in_memory,
        "gpu_layers": fit.gpu_layers,
        "layers": fit.n_layers or None,
    }
