"""From what a request asks for to constraints: picks the engine, compiles, and keeps what was compiled. Workers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any, Protocol

from llm_local.engine.constraint import Constraint
from llm_local.errors import InvalidGrammar, InvalidSchema, RequestError
from llm_local.structured.guidance import Guidance
from llm_local.structured.schema import canonical
from llm_local.structured.spec import ChoiceSpec, GbnfSpec, JsonSpec, RegexSpec, Spec

CACHE_SIZE = 256
MAX_SCHEMA_BYTES = 2**20
MAX_CHOICES = 10_000
MAX_CHOICE_CHARACTERS = 2**18


class Compiled(Protocol):
    """A compiled grammar."""

    def start(self) -> Constraint:
        """Return a constraint for one answer."""
        ...


class Grammars:
    """Compiles and caches.

    Args:
        guidance: the llguidance engine, in the making since the weights were loaded.
    """

    def __init__(self, guidance: Future[Guidance]) -> None:
        self._guidance = guidance
        self._cache: OrderedDict[str, Compiled] = OrderedDict()
        self._lock = threading.Lock()

    async def ready(self) -> None:
        """Wait for the tables of the vocabulary, which are built beside the start."""
        await asyncio.shield(asyncio.wrap_future(self._guidance))

    def constraints(self, spec: Spec, n: int) -> list[Constraint]:
        """Return a constraint for each of `n` answers.

        Raises:
            InvalidSchema, InvalidGrammar: it cannot be enforced; the text says where and why.
        """
        compiled = self._compiled(spec)
        return [compiled.start() for _ in range(n)]

    def _compiled(self, spec: Spec) -> Compiled:
        key = _key(spec)
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
                return found
        try:
            compiled = self._compile(spec)
        except RequestError as error:
            error.param = error.param or spec.param
            raise
        with self._lock:
            self._cache[key] = compiled
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        return compiled

    def _compile(self, spec: Spec) -> Compiled:
        guidance = self._guidance.result()
        match spec:
            case JsonSpec(schema):
                if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
                    raise InvalidSchema(f"The schema has over {MAX_SCHEMA_BYTES} bytes.")
                return guidance.json(canonical(schema))
            case RegexSpec(pattern):
                return guidance.regex(pattern)
            case ChoiceSpec(choices):
                _check_choices(choices)
                return guidance.choice(choices)
            case GbnfSpec():
                raise InvalidGrammar("GBNF is not served yet.")


def _check_choices(choices: tuple[str, ...]) -> None:
    if not choices or not all(choices):
        raise InvalidGrammar("There must be at least one choice, and none may be empty.")
    if len(choices) > MAX_CHOICES or sum(map(len, choices)) > MAX_CHOICE_CHARACTERS:
        raise InvalidGrammar(f"At most {MAX_CHOICES} choices with {MAX_CHOICE_CHARACTERS} characters can be given.")


def _key(spec: Spec) -> str:
    """Return the hash of what a spec asks for; the order of a schema's keys counts, as it orders properties."""
    content: dict[str, Any] = {name: getattr(spec, name) for name in spec.__slots__ if name != "param"}
    return hashlib.sha256(f"{type(spec).__name__} {json.dumps(content)}".encode()).hexdigest()
