"""The known models: `catalogue.toml`, and what a name in it means."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from llm_local.models.names import ModelName, parse_name


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A quantization of a known model.

    Attributes:
        file: its name in the repository, of the first shard where there are several.
        bytes: of all shards together.
        approximate: the size could not be checked.
    """

    quantization: str
    file: str
    bytes: int
    approximate: bool = False


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model of the catalogue.

    Attributes:
        name: in the API and on the command line.
        aliases: further names, in lower case.
        repository: on the hub; None where it comes with a package.
        former: repositories that people name, and that do not exist.
        kv_bytes_per_token: of a cache in f16; 0 for encoders.
        default: the quantization that the bare name means.
    """

    name: str
    role: str
    about: str
    licence: str
    layers: int
    kv_bytes_per_token: int
    default: str
    files: tuple[PublishedFile, ...]
    repository: str | None = None
    chat_template: str | None = None
    aliases: tuple[str, ...] = ()
    former: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it goes by."""
        return (self.name, *self.aliases)

    def published(self, quantization: str | None) -> PublishedFile | None:
        """Return the file of a quantization, None is the default one; None where it is not in the catalogue."""
        wanted = quantization or self.default
        return next((file for file in self.files if file.quantization == wanted), None)


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Return the catalogue."""
    text = files("llm_local.models").joinpath("catalogue.toml").read_text(encoding="utf-8")
    return tuple(_model(table) for table in tomllib.loads(text)["model"])


def find(name: ModelName) -> KnownModel | None:
    """Return the known model that a name means, whatever its quantization."""
    return next((model for model in known_models() if name.stem in model.names), None)


def find_repository(repository: str) -> KnownModel | None:
    """Return the known model that a repository publishes, or is said to."""
    wanted = repository.lower()
    for model in known_models():
        if wanted in [known.lower() for known in (model.repository, *model.former) if known]:
            return model
    return None


def spellings(name: str) -> set[ModelName]:
    """Return the names under which the model may lie on a disk: its own, and those that the catalogue knows."""
    wanted = parse_name(name)
    model = find(wanted)
    if model is None:
        return {wanted}
    return {wanted} | {ModelName(known, wanted.quantization or model.default) for known in model.names}


def near_names(name: str, there: Iterable[str] = (), n: int = 3) -> list[str]:
    """Return up to `n` names like `name`, of those given and of the catalogue's."""
    known = [f"{model.name}-{file.quantization.lower()}" for model in known_models() for file in model.files]
    bare = [known_name for model in known_models() for known_name in model.names]
    pool = {candidate.lower(): candidate for candidate in [*bare, *known, *there]}
    near = difflib.get_close_matches(Path(name).name.lower(), pool, n=n, cutoff=0.4)
    return [pool[candidate] for candidate in near]


def _model(table: dict[str, Any]) -> KnownModel:
    lists = {name: tuple(table.get(name, ())) for name in ("aliases", "former")}
    published = tuple(PublishedFile(**file) for file in table["files"])
    return KnownModel(**{**table, **lists, "files": published})
