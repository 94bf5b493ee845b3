"""What a request asks an answer to be, before any engine has seen it. Values; any thread."""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a model writes calls: `opens gap {"name": "f", "arguments": {...}} gap closes`, with separators between.

    Attributes:
        arguments: the key of the arguments.
    """

    opens: str
    closes: str
    gap: str
    arguments: str
    separator: str


FindCall = Callable[[str, bool], tuple[str | None, int]]
"""Looks for the opening of a call in a text; the second argument says whether the text begins the answer.

Returns the key of the opening ("" after a mark, else the function's name) and where the constrained part begins. Where
no call is opened yet, the key is None, and so much of the text is surely not part of an opening.
"""


@dataclass(frozen=True, slots=True)
class CallsSpec:
    """Calls of functions, or free text in which they may be opened.

    Attributes:
        tools: name, schema of the arguments, and its place in the request.
        form: how calls are written.
        parallel: whether there may be more than one.
        find: finds where a call is opened in free text; None when calls are certain from the first token on.
        content: schema that an answer without calls must be valid against.
    """

    tools: tuple[tuple[str, Any, str], ...]
    form: CallFormat
    parallel: bool
    find: FindCall | None = None
    content: JsonSpec | None = None
    param: str = "tools"


Spec = JsonSpec | RegexSpec | ChoiceSpec | GbnfSpec | CallsSpec
