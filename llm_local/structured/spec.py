"""What a request asks an answer to be, before any engine has seen it. Values; any thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class JsonSpec:
    """A JSON value that is valid against a schema.

    Attributes:
        schema: as the client sent it.
        param: dotted name of the request's field, for errors.
    """

    schema: Any
    param: str = "response_format.json_schema.schema"


@dataclass(frozen=True, slots=True)
class RegexSpec:
    """Text that a regular expression matches as a whole."""

    pattern: str
    param: str = "guided_regex"


@dataclass(frozen=True, slots=True)
class ChoiceSpec:
    """One of some texts."""

    choices: tuple[str, ...]
    param: str = "guided_choice"


@dataclass(frozen=True, slots=True)
class GbnfSpec:
    """Text of llama.cpp's grammar language."""

    grammar: str
    param: str = "grammar"


Spec = JsonSpec | RegexSpec | ChoiceSpec | GbnfSpec
