"""What the engine thread is told."""

from __future__ import annotations

from dataclasses import dataclass

from llm_local.engine.disk_worker import Report
from llm_local.engine.radix_tree import Tokens
from llm_local.engine.sequence import Sequence
from llm_local.engine.stream import Stream


@dataclass(frozen=True, slots=True)
class Submit:
    """New sequences."""

    sequences: list[Sequence]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody reads this stream any more."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Pin:
    """Prefixes to be evicted last."""

    prefixes: list[Tokens]


@dataclass(frozen=True, slots=True)
class FromDisk:
    """What the disk's thread did."""

    report: Report


class Stop:
    """The end."""


class Wake:
    """There is a side job."""


Message = Submit | Cancel | Pin | FromDisk | Stop | Wake
