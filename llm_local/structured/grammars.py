"""From what a request asks for to constraints: picks the engine, compiles within a budget, and keeps what it compiled.

Event loop, and threads of its own: a schema that takes long holds up neither the loop nor those who need no grammar.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from llm_local.engine.constraint import Constraint
from llm_local.errors import InvalidGrammar, InvalidSchema, QueueFull, RequestError
from llm_local.structured.after_opening import CompiledAfterOpening
from llm_local.structured.calls import CallGrammars, CallLanguage
from llm_local.structured.closing import Closing
from llm_local.structured.gbnf import check_gbnf
from llm_local.structured.guidance import Guidance
from llm_local.structured.lark import Lark
from llm_local.structured.native import NativeCalls, NativeEngine
from llm_local.structured.places import Places, has_unique_items
from llm_local.structured.readable import readable
from llm_local.structured.schema import Schema, canonical
from llm_local.structured.spec import CallsSpec, ChoiceSpec, GbnfSpec, JsonSpec, RegexSpec, Spec
from llm_local.structured.tokens import Compiled, Copyable, Tokens

CACHE_SIZE = 256
MAX_SCHEMA_BYTES = 2**20
MAX_CHOICES = 10_000
THREADS = 2
BUDGET_S = 2.0
QUEUE_S = 10
MAX_CHOICE_CHARACTERS = 2**18


class Grammars:
    """Compiles and caches.

    Args:
        guidance: the llguidance engine, in the making since the weights were loaded.
        piece: returns the bytes that a token stands for in an answer.
        native: the LlamaGrammar engine.
        engine: `llguidance`, `llama`, or `auto`: llguidance, and LlamaGrammar for GBNF and for schemas that
            llguidance refuses and LlamaGrammar enforces wholly.
        close_json: steer JSON that would be cut by its limit of tokens to a valid end.
    """

    def __init__(
        self,
        guidance: Future[Guidance],
        piece: Callable[[int], bytes],
        native: NativeEngine | None = None,
        engine: str = "auto",
        *,
        close_json: bool = False,
    ) -> None:
        self._guidance = guidance
        self._piece = piece
        self._native = native
        self._engine = engine
        self._close_json = close_json
        self._threads = ThreadPoolExecutor(THREADS, "grammar")
        self._tables: Future[Tokens] = Future()
        self._cache: OrderedDict[str, Compiled] = OrderedDict()
        self._lock = threading.Lock()
        guidance.add_done_callback(self._build)

    async def prepare(self, spec: Spec, max_tokens: Sequence[int]) -> list[Constraint]:
        """Return a constraint for each answer, once the tables of the vocabulary are built.

        Args:
            spec: what the answers must be.
            max_tokens: limits of tokens, one for each answer.

        Raises:
            InvalidSchema, InvalidGrammar: it cannot be enforced, or not compiled in time; the text says where and why.
            QueueFull: others are compiled for too long already.
        """
        await asyncio.shield(asyncio.wrap_future(self._tables))
        if self._find(spec) is not None:
            return self.constraints(spec, max_tokens)
        loop = asyncio.get_running_loop()
        begun = asyncio.Event()

        def work() -> list[Constraint]:
            loop.call_soon_threadsafe(begun.set)
            return self.constraints(spec, max_tokens)

        job = loop.run_in_executor(self._threads, work)
        try:
            await self._begin(begun)
            return await asyncio.wait_for(asyncio.shield(job), BUDGET_S)
        except TimeoutError:
            error = InvalidSchema if isinstance(spec, JsonSpec | CallsSpec) else InvalidGrammar
            raise error(f"It takes over {BUDGET_S:.0f} s to compile. Make it smaller.", param=spec.param) from None
        finally:
            # One that has not begun never will; of one that has, nobody takes the result.
            if not job.done() and not (not begun.is_set() and job.cancel()):
                job.add_done_callback(_close_unused)

    @staticmethod
    async def _begin(begun: asyncio.Event) -> None:
        try:
            await asyncio.wait_for(begun.wait(), QUEUE_S)
        except TimeoutError:
            raise QueueFull("The server is busy compiling schemas; try again.", retry_after_s=QUEUE_S) from None

    def constraints(self, spec: Spec, max_tokens: Sequence[int]) -> list[Constraint]:
        """Do the work of `prepare`, on any thread."""
        compiled = self._compiled(spec)
        return [self._started(compiled, spec, most) for most in max_tokens]

    def _started(self, compiled: Compiled, spec: Spec, max_tokens: int) -> Constraint:
        if not self._close_json or not isinstance(spec, JsonSpec | CallsSpec):
            return compiled.start()
        if isinstance(compiled, CompiledAfterOpening):
            return compiled.start(max_tokens)
        return Closing(cast(Copyable, compiled.start()), self._tokens, max_tokens)

    @property
    def _tokens(self) -> Tokens:
        return self._tables.result()

    def _build(self, guidance: Future[Guidance]) -> None:
        """Build the tables of the vocabulary, on the thread that made llguidance's."""
        try:
            made = guidance.result()
            self._tables.set_result(Tokens(made.n_vocab, self._piece, made.byte_tokens, made.end_tokens).built())
        except BaseException as error:
            self._tables.set_exception(error)

    def close(self) -> None:
        """Take nothing more, and wait for what is in the making: it reads the model's vocabulary."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._tables.exception()

    def _find(self, spec: Spec) -> Compiled | None:
        """Return what was compiled before."""
        with self._lock:
            found = self._cache.get(key := _key(spec))
            if found is None or found.is_spent:
                return None
            self._cache.move_to_end(key)
            return found

    def _compiled(self, spec: Spec) -> Compiled:
        found = self._find(spec)
        if found is not None:
            return found
        try:
            compiled = self._compile(spec)
        except RequestError as error:
            error.param = error.param or spec.param
            raise
        with self._lock:
            self._cache[_key(spec)] = compiled
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        return compiled

    def _compile(self, spec: Spec) -> Compiled:
        match spec:
            case JsonSpec(schema):
                if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
                    raise InvalidSchema(f"The schema has over {MAX_SCHEMA_BYTES} bytes.")
                return self._json(canonical(schema))
            case GbnfSpec(grammar):
                return self._gbnf(grammar)
            case CallsSpec():
                return self._calls(spec)
            case RegexSpec(pattern):
                return self._texts().regex(pattern)
            case ChoiceSpec(choices):
                _check_choices(choices)
                return self._texts().choice(choices)

    def _texts(self) -> Guidance | NativeEngine:
        if self._engine == "llama" and self._native is not None:
            return self._native
        return self._guidance.result()

    def _json(self, schema: Schema) -> Compiled:
        compiled = self._without_distinct(schema)
        places = Places([schema]) if _is_distinct(schema) else None
        return readable(compiled, [schema], places, self._tokens)

    def _without_distinct(self, schema: Schema) -> Compiled:
        if self._engine == "llama" and self._native is not None:
            return self._native.json(schema)
        try:
            return self._guidance.result().json(schema)
        except InvalidSchema as refused:
            if self._engine != "auto" or self._native is None:
                raise
            try:
                return self._native.json(schema)
            except InvalidSchema:
                raise refused from None

    def _calls(self, spec: CallsSpec) -> Compiled:
        tools = {name: (_at(schema, where), where) for name, schema, where in spec.tools}
        content = None
        if spec.content is not None:
            content = (_at(spec.content.schema, spec.content.param), spec.content.param)
        refused: RequestError | None = None
        for language in self._languages():
            try:
                return self._calls_in(language, spec, tools, content)
            except (InvalidSchema, InvalidGrammar) as error:
                refused = refused or error
        for schema, where in [*tools.values(), *([content] if content is not None else [])]:
            self._check(schema, where)
        assert refused is not None
        raise refused

    def _check(self, schema: Schema, where: str) -> None:
        """Raise what is wrong with one schema of several, in its own words."""
        try:
            readable(self._without_distinct(schema), [schema], None, self._tokens)
        except InvalidSchema as error:
            error.param = where
            raise

    def _languages(self) -> Iterator[CallLanguage]:
        if self._engine != "llama":
            yield Lark(self._guidance.result())
        if self._engine != "llguidance" and self._native is not None:
            yield NativeCalls(self._native)

    def _calls_in(
        self,
        language: CallLanguage,
        spec: CallsSpec,
        tools: dict[str, tuple[Schema, str]],
        content: tuple[Schema, str] | None,
    ) -> Compiled:
        grammars = CallGrammars(language, tools, spec.form, parallel=spec.parallel)
        arguments = {name: schema for name, (schema, _) in tools.items()}
        answers = [content[0]] if content is not None else []
        schemas = [*arguments.values(), *answers]
        distinct = any(map(_is_distinct, schemas))
        if spec.find is None or content is not None:
            # With JSON beside calls there is no free text to wait in: an answer is a call or JSON.
            compiled = grammars.required(content if spec.find is not None else None)
            return readable(compiled, schemas, Places(answers, arguments) if distinct else None, self._tokens)
        opened = {
            key: readable(one, schemas, Places([], arguments, key or None) if distinct else None, self._tokens)
            for key, one in grammars.opened().items()
        }
        return CompiledAfterOpening(spec.find, opened, self._tokens)

    def _gbnf(self, grammar: str) -> Compiled:
        if self._native is not None and self._engine != "llguidance":
            return self._native.gbnf(grammar)
        check_gbnf(grammar)
        return self._guidance.result().gbnf(grammar)


def _close_unused(job: asyncio.Future[list[Constraint]]) -> None:
    """Free what nobody waits for any more."""
    if not job.cancelled() and job.exception() is None:
        for constraint in job.result():
            constraint.close()


def _check_choices(choices: tuple[str, ...]) -> None:
    if not choices or not all(choices):
        raise InvalidGrammar("There must be at least one choice, and none may be empty.")
    if len(choices) > MAX_CHOICES or sum(map(len, choices)) > MAX_CHOICE_CHARACTERS:
        raise InvalidGrammar(f"At most {MAX_CHOICES} choices with {MAX_CHOICE_CHARACTERS} characters can be given.")


def _at(schema: Any, where: str) -> Schema:
    try:
        return canonical(schema)
    except InvalidSchema as error:
        error.param = where
        raise


def _is_distinct(schema: Schema) -> bool:
    return has_unique_items([schema.root, *schema.defs.values()])


def _key(spec: Spec) -> str:
    """Return the hash of what a spec asks for; the order of a schema's keys counts, as it orders properties."""
    content: dict[str, Any] = {name: getattr(spec, name) for name in spec.__slots__ if name != "param"}
    try:
        text = json.dumps(content, default=lambda it: callable(it) or [getattr(it, name) for name in it.__slots__])
    except RecursionError:
        raise InvalidSchema("The schema is nested too deep.", param=spec.param) from None
    return hashlib.sha256(f"{type(spec).__name__} {text}".encode()).hexdigest()
