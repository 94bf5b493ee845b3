"""What is known and what is there: the rows of `llm-local models`."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path

from llm_local.errors import StartupError
from llm_local.models.catalogue import KnownModel, find, known_models
from llm_local.models.hub import cached_model
from llm_local.models.locate import ggufs, look, missing_shards
from llm_local.models.memory import KV_FACTOR, Fit, Need, fits
from llm_local.models.names import ModelName, parse_name, shard_names
from llm_local.models.source import of_known


@dataclass(frozen=True, slots=True)
class Row:
    """A model in one quantization.

    Attributes:
        bytes: of all shards.
        approximate: the size could not be checked.
        path: the first shard, where the model is whole on this machine.
        state: `here`, `cache` (the hub's), `partly` (shards are missing), `no`.
    """

    name: str
    quantization: str | None
    role: str
    bytes: int
    approximate: bool
    path: Path | None
    state: str
    default: bool
    fit: Fit
    model: KnownModel | None


@dataclass(frozen=True, slots=True)
class Room:
    """What models have to fit in; bytes."""

    ctx: int
    kv_type: str
    free_ram: int | None
    free_gpus: SequenceOf[int] = ()
    gpu_utilization: float = 0.9


def inventory(models_dir: Path, room: Room) -> list[Row]:
    """Return the catalogue, and what else is in the models folder."""
    rows = [row for model in known_models() for row in _known(model, models_dir, room)]
    listed = {row.path for row in rows if row.path is not None}
    names = {(row.name, row.quantization) for row in rows}
    for path in ggufs(models_dir):
        name = parse_name(path.name)
        model = find(name)
        if path not in listed and ((model.name if model else name.stem), name.quantization) not in names:
            rows.append(_unknown(path, name, model, room))
    return rows


def _known(model: KnownModel, models_dir: Path, room: Room) -> list[Row]:
    rows = []
    for file in model.files:
        path, state = _where(model, file.quantization, models_dir)
        n_bytes = _size(path) if path is not None else file.bytes
        rows.append(
            Row(
                name=model.name,
                quantization=file.quantization,
                role=model.role,
                bytes=n_bytes,
                approximate=file.approximate and path is None,
                path=path,
                state=state,
                default=file.quantization == model.default,
                fit=_fit(n_bytes, model, room),
                model=model,
            )
        )
    return rows


def _where(model: KnownModel, quantization: str, models_dir: Path) -> tuple[Path | None, str]:
    try:
        path = look(f"{model.name}-{quantization}" if model.repository else model.name, models_dir)
    except StartupError:
        path = None
    if path is not None:
        return (None, "partly") if missing_shards(path) else (path, "here")
    source = of_known(model, quantization)
    cached = cached_model(source) if source is not None else None
    return (cached, "cache") if cached is not None else (None, "no")


def _unknown(path: Path, name: ModelName, model: KnownModel | None, room: Room) -> Row:
    whole = not missing_shards(path)
    n_bytes = _size(path)
    return Row(
        name=model.name if model else name.stem,
        quantization=name.quantization,
        role=model.role if model else "",
        bytes=n_bytes,
        approximate=not whole,
        path=path if whole else None,
        state="here" if whole else "partly",
        default=False,
        fit=_fit(n_bytes, model, room),
        model=model,
    )


def _size(first: Path) -> int:
    shards = [first.parent / name for name in shard_names(first.name)]
    return sum(path.stat().st_size for path in shards if path.is_file())


def _fit(n_bytes: int, model: KnownModel | None, room: Room) -> Fit:
    kv = int(model.kv_bytes_per_token * KV_FACTOR[room.kv_type] * room.ctx) if model is not None else 0
    need = Need(n_bytes, model.layers if model is not None else 0, kv)
    return fits(need, room.free_ram, room.free_gpus, gpu_utilization=room.gpu_utilization)
