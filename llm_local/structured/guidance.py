"""The llguidance engine: an Earley parser over derivative-based lexers, in Rust. The only importer of llguidance.

Compiling runs on workers; a `GuidanceConstraint` belongs to the engine thread once its answer runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from typing import Any, Protocol

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark

from llm_local.engine.constraint import Allowed, ConstraintFailed
from llm_local.engine.types import Token
from llm_local.errors import InvalidGrammar, InvalidSchema
from llm_local.structured.logic import Node, has_all_of
from llm_local.structured.pattern import to_rust
from llm_local.structured.schema import Schema

# Dates that Python and JavaScript read, too: no year 0, no leap second, at most nanoseconds.
_YEAR = r"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_CLOCK = r"[0-9]{2}:[0-9]{2}:[0-5][0-9](?:\.[0-9]{1,9})?[Zz+-]"
STRICTER_FORMATS = {
    "date": f"^{_YEAR}-",
    "date-time": f"^{_YEAR}-[0-9]{{2}}-[0-9]{{2}}.{_CLOCK}",
    "time": f"^{_CLOCK}",
}

MAX_INTEGER = 2**63 - 1024
"""Integers without bounds have 64 bits (less what a double rounds): a model lost in digits would never end one."""

NARROWED_BY = 1e-9

FLEXIBLE = {"whitespace_pattern": r"[ \t\r\n]{1,60}"}
"""Optional whitespace between the parts of JSON, but not without end: small models get lost in it."""

MAX_ITEMS = 20_000
"""Earley items in one row: an object of a thousand optional properties has four thousand."""


class TokenTable(Protocol):
    """What llguidance must know of a vocabulary.

    Attributes:
        n_vocab: number of tokens (logits).
        end_tokens: tokens that end an answer.
    """

    n_vocab: int

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    def token_bytes(self) -> list[bytes]:
        """Return each token's bytes, those of control tokens marked by a leading 0xFF."""
        ...

    def native_tokenizer(self) -> tuple[int, int]:
        """Return the addresses of the vocabulary and of `llama_tokenize`."""
        ...


def build_tokenizer(table: TokenTable) -> llguidance.LLTokenizer:
    """Build llguidance's tables of a vocabulary, which takes about a second for 150,000 tokens."""
    vocabulary, tokenize = table.native_tokenizer()
    from_llamacpp: Any = llguidance.LLTokenizer.from_llamacpp  # type: ignore[attr-defined]
    tokenizer: llguidance.LLTokenizer = from_llamacpp(
        tokens=table.token_bytes(),
        vocab_ptr=vocabulary,
        tokenize_fptr=tokenize,
        eos_token=sorted(table.end_tokens),
        slices=None,
    )
    return tokenizer


class Guidance:
    """Compiles grammars for one vocabulary.

    Args:
        tokenizer: from `build_tokenizer`.
        n_vocab: number of tokens (logits).
        compact: no optional whitespace in JSON.
    """

    def __init__(self, tokenizer: llguidance.LLTokenizer, n_vocab: int, *, compact: bool) -> None:
        self._tokenizer = tokenizer
        self.n_vocab = n_vocab
        self._options: dict[str, Any] = {"whitespace_flexible": False} if compact else FLEXIBLE
        self._limits = llguidance.LLParserLimits(max_items_in_row=MAX_ITEMS, verbose_errors=False)

    def json(self, schema: Schema) -> CompiledGuidance:
        """Compile a canonical schema.

        Raises:
            InvalidSchema: llguidance cannot enforce it; its own words say why.
        """
        text = json.dumps({"x-guidance": self._options, **document(schema)}, ensure_ascii=False)
        return self._compile(
            llguidance.LLMatcher.grammar_from_json_schema(text),
            lambda why: InvalidSchema(f"The schema cannot be enforced: {why}"),
        )

    def regex(self, pattern: str) -> CompiledGuidance:
        """Compile a regular expression that matches the whole answer.

        Raises:
            InvalidGrammar: it is none, or uses what finite automata cannot do.
        """
        return self._compile(
            llguidance.LLMatcher.grammar_from_regex(whole(pattern)),
            lambda why: InvalidGrammar(f"The regular expression cannot be enforced: {why}"),
        )

    def choice(self, choices: SequenceOf[str]) -> CompiledGuidance:
        """Compile a list of texts."""
        literals = "|".join("".join(f"\\u{{{ord(char):x}}}" for char in text) for text in choices)
        return self._compile(
            llguidance.LLMatcher.grammar_from_regex(literals),
            lambda why: InvalidGrammar(f"The choices cannot be enforced: {why}"),
        )

    def gbnf(self, grammar: str) -> CompiledGuidance:
        """Compile GBNF through llguidance's own translation to Lark."""
        try:
            return self.lark(any_to_lark(grammar))
        except Exception as error:
            raise InvalidGrammar(f"The grammar cannot be translated: {error}") from error

    def lark(self, grammar: str) -> CompiledGuidance:
        """Compile a grammar in llguidance's dialect of Lark."""
        return self._compile(
            llguidance.LLMatcher.grammar_from_lark(grammar),
            lambda why: InvalidGrammar(f"The grammar cannot be enforced: {why}"),
        )

    @cached_property
    def byte_tokens(self) -> list[Token | None]:
        """The token of each byte, where the vocabulary has one (None elsewhere)."""
        found = [self._tokenizer.tokenize_bytes(bytes([byte])) for byte in range(256)]
        return [tokens[0] if len(tokens) == 1 else None for tokens in found]

    @property
    def end_tokens(self) -> list[Token]:
        """Tokens that end an answer."""
        return list(self._tokenizer.eos_tokens)

    def is_special(self, text: str) -> bool:
        """Tell whether the vocabulary has a token of its own for a mark such as `<tool_call>`."""
        tokens = self._tokenizer.tokenize_str(text, parse_special=True)
        return len(tokens) == 1 and self._tokenizer.is_special_token(tokens[0])

    def _compile(self, grammar: str, error: Callable[[str], Exception]) -> CompiledGuidance:
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        trial = matcher.deep_copy()
        if not matcher.is_error():
            # What is too large shows at the first mask.
            trial.compute_bitmask()
        if trial.is_error():
            raise error(_first_lines(trial.get_error()))
        return CompiledGuidance(matcher, self._tokenizer, self.n_vocab)


class CompiledGuidance:
    """A compiled grammar, from which any number of constraints start."""

    def __init__(self, matcher: llguidance.LLMatcher, tokenizer: llguidance.LLTokenizer, n_vocab: int) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab

    def start(self) -> GuidanceConstraint:
        """Return a constraint for one answer."""
        return GuidanceConstraint(self._matcher.deep_copy(), self._tokenizer, self._n_vocab)


class GuidanceConstraint:
    """`engine.Constraint` on an llguidance matcher; see there for the methods."""

    def __init__(self, matcher: llguidance.LLMatcher, tokenizer: llguidance.LLTokenizer, n_vocab: int) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._end_tokens = frozenset(tokenizer.eos_tokens)

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete as it is."""
        return bool(self._matcher.is_accepting())

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def allows(self, token: Token) -> bool:
        """Tell whether the token may come next."""
        if token in self._end_tokens:
            return self.may_end
        return bool(self._matcher.validate_tokens([token]) == 1)

    def allowed(self) -> Allowed:
        """Return which tokens may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: self._n_vocab].view(np.bool_)
        if self._matcher.is_error() or not allowed.any():
            raise self._failed()
        return allowed

    def accept(self, token: Token) -> None:
        """Move on by a token."""
        if not self._matcher.consume_token(token):
            raise self._failed()

    def forced(self) -> SequenceOf[Token]:
        """Return tokens that are the only way to go on."""
        return self._matcher.compute_ff_tokens()

    def feed(self, text: bytes) -> bool:
        """Move on by text, however it is cut into tokens; False when it cannot follow."""
        tokens = self._tokenizer.tokenize_bytes(text) if text else []
        return bool(self._matcher.try_consume_tokens(tokens) == len(tokens))

    def copy(self) -> GuidanceConstraint:
        """Return a constraint in the same state."""
        return GuidanceConstraint(self._matcher.deep_copy(), self._tokenizer, self._n_vocab)

    def close(self) -> None:
        """Nothing: Rust frees the matcher with this object."""

    def _failed(self) -> ConstraintFailed:
        why = _first_lines(self._matcher.get_error()) or "no token can follow"
        return ConstraintFailed(f"The grammar could not be followed to its end: {why}")


def whole(pattern: str) -> str:
    """Return a pattern (Rust) for the whole text; anchors at its ends are allowed and mean nothing.

    Raises:
        InvalidGrammar: an anchor stands elsewhere.
    """
    try:
        translated = to_rust(pattern, "guided_regex")
    except InvalidSchema as error:
        raise InvalidGrammar(error.message) from None
    if translated.startswith("^"):
        translated = translated[1:]
    if translated.endswith("$") and not translated.endswith("\\$"):
        translated = translated[:-1]
    return translated


def document(schema: Schema) -> dict[str, Any]:
    """Return a canonical schema as llguidance reads it."""
    merges = has_all_of([schema.root, *schema.defs.values()])
    root = _emit(schema.root, merges)
    defs = {name: _emit(node, merges) for name, node in schema.defs.items()}
    return {**({"$defs": defs} if defs else {}), **(root if isinstance(root, dict) else {})}


def _emit(node: Node, merges: bool) -> Node:
    """Return a canonical node in llguidance's reading: a format that it knows is enforced, with what makes it safe.

    Args:
        merges: whether bounds of this node may be joined with those of another one.
    """
    if isinstance(node, list):
        return [_emit(item, merges) for item in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "uniqueItems":
            # `distinct.py` sees to it.
            continue
        if key in ("properties", "patternProperties"):
            out[key] = {name: _emit(item, merges) for name, item in value.items()}
        else:
            out[key] = value if key in ("enum", "required", "type") else _emit(value, merges)
    if "integer" in (kinds := _kinds(node)) and "number" not in kinds:
        out["minimum"] = max(out.get("minimum", -MAX_INTEGER), -MAX_INTEGER)
        out["maximum"] = min(out.get("maximum", MAX_INTEGER), MAX_INTEGER)
    elif merges or _bounds_are_near(node):
        _narrow_bounds(out)
    stricter = STRICTER_FORMATS.get(node.get("format", ""))
    return {"allOf": [out, {"pattern": stricter}]} if stricter else out


def _kinds(node: dict[str, Any]) -> list[str]:
    kinds = node.get("type", [])
    return kinds if isinstance(kinds, list) else [kinds]


def _bounds_are_near(node: dict[str, Any]) -> bool:
    lows = [node[key] for key in ("minimum", "exclusiveMinimum") if key in node]
    highs = [node[key] for key in ("maximum", "exclusiveMaximum") if key in node]
    return bool(lows and highs) and min(highs) - max(lows) < 1


def _narrow_bounds(node: dict[str, Any]) -> None:
    """Replace exclusive bounds that are whole numbers by inclusive ones beside them.

    llguidance 1.9 lets the bound itself pass where the other one is less than 1 away (`0 < x <= 0.5` admits 0).
    Elsewhere bounds stay as they are: it reads no `9.9` below 9.999999999, only `9.900000000`.
    """
    for exclusive, inclusive, sign in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        bound = node.get(exclusive)
        if bound is None or bound != int(bound):
            continue
        nearest = bound + sign * max(NARROWED_BY, 2 * math.ulp(bound))
        del node[exclusive]
        other = node.get(inclusive, nearest)
        node[inclusive] = max(other, nearest) if sign > 0 else min(other, nearest)


def _first_lines(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return "; ".join(lines[:3])[:500]
