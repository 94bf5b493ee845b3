"""The llguidance engine: an Earley parser over derivative-based lexers, in Rust. The only importer of llguidance.

Compiling runs on workers; a `GuidanceConstraint` belongs to the engine thread once its answer runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from typing import Any, Protocol

import llguidance
import numpy as np

from llm_local.engine.constraint import Allowed, ConstraintFailed
from llm_local.engine.types import Token
from llm_local.errors import InvalidGrammar, InvalidSchema
from llm_local.structured.document import document
from llm_local.structured.gbnf_as_lark import lark_of_gbnf
from llm_local.structured.regular import Regular
from llm_local.structured.schema import Schema
from llm_local.structured.spacing import Spacing
from llm_local.structured.unsatisfiable import contradiction

OPTIONS: dict[Spacing, dict[str, Any]] = {
    Spacing.COMPACT: {"whitespace_flexible": False},
    Spacing.SPACED: {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    Spacing.FLEXIBLE: {"whitespace_pattern": r"[ \t\r\n]{1,60}"},
}

MAX_ITEMS = 20_000
"""Earley items in one row: an object of a thousand optional properties has four thousand. (So many as
`objects.MAX_PROPERTIES` fit; llguidance says that there are too many only in mid-answer.)"""

STEP_FUEL = 2_000_000
"""Expressions that a lexer may make for one token, ten times the default: nested repetitions of words need them."""

UNSATISFIABLE = "Unsatisfiable schema: "
"""How llguidance says that nothing satisfies a schema."""


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
    """Build llguidance's tables of a vocabulary, which takes about a second for 150,000 tokens.

    Left out of its slices is that of whitespace: 10 MB, and masks are found as quickly without it.
    """
    vocabulary, tokenize = table.native_tokenizer()
    from_llamacpp: Any = llguidance.LLTokenizer.from_llamacpp  # type: ignore[attr-defined]
    tokenizer: llguidance.LLTokenizer = from_llamacpp(
        tokens=table.token_bytes(),
        vocab_ptr=vocabulary,
        tokenize_fptr=tokenize,
        eos_token=sorted(table.end_tokens),
        slices=llguidance.LLTokenizer.json_slices()[1:],
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
        self._options = OPTIONS[Spacing.COMPACT if compact else Spacing.FLEXIBLE]
        self._limits = llguidance.LLParserLimits(
            max_items_in_row=MAX_ITEMS, step_lexer_fuel=STEP_FUEL, verbose_errors=False
        )

    def json(self, schema: Schema) -> CompiledGuidance:
        """Compile a canonical schema.

        Raises:
            InvalidSchema: llguidance cannot enforce it, or nothing satisfies it; its own words say why.
        """
        try:
            return self._compile(
                self._grammar_of(schema), lambda why: InvalidSchema(f"The schema cannot be enforced: {why}")
            )
        except InvalidSchema as error:
            found = contradiction(schema.root, lambda node: self._why_nothing_satisfies(Schema(node, schema.defs)))
            if found is None:
                raise
            raise InvalidSchema(f"{found[0]}: no value satisfies this: {found[1]}.") from error

    def _grammar_of(self, schema: Schema) -> str:
        text = json.dumps({"x-guidance": self._options, **document(schema)}, ensure_ascii=False)
        return llguidance.LLMatcher.grammar_from_json_schema(text)

    def _why_nothing_satisfies(self, schema: Schema) -> str | None:
        matcher = llguidance.LLMatcher(self._tokenizer, self._grammar_of(schema), log_level=0, limits=self._limits)
        _, found, why = _first_lines(matcher.get_error()).partition(UNSATISFIABLE)
        return why.split(";")[0] if found else None

    def regex(self, pattern: str) -> CompiledGuidance:
        """Compile a regular expression that matches the whole answer.

        Raises:
            InvalidGrammar: it is none, or uses what finite automata cannot do.
        """
        return self._compile(
            llguidance.LLMatcher.grammar_from_regex(Regular(pattern).rust()),
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
        """Compile GBNF.

        Raises:
            InvalidGrammar: it has what is not known here, or is too large.
        """
        return self.lark(lark_of_gbnf(grammar))

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
        made = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        first = made if made.is_error() else made.deep_copy()
        # What is too large to be followed is often known from the first token on.
        if first.is_error() or not first.compute_bitmask() or first.is_error():
            raise error(_first_lines(first.get_error()))
        return CompiledGuidance(made, self._tokenizer, self.n_vocab)


class CompiledGuidance:
    """A compiled grammar, from which any number of constraints start.

    Args:
        matcher: its first state.
        tokenizer: of the vocabulary.
        n_vocab: number of tokens (logits).

    Attributes:
        is_spent: whether an answer hit a limit. All copies of a matcher share a lexer, which fails from then on.
    """

    def __init__(self, matcher: llguidance.LLMatcher, tokenizer: llguidance.LLTokenizer, n_vocab: int) -> None:
        self._matcher = matcher
        self.is_spent = False
        self.tokenizer = tokenizer
        self.n_vocab = n_vocab

    def start(self) -> GuidanceConstraint:
        """Return a constraint for one answer.

        Raises:
            ConstraintFailed: it is spent.
        """
        if self.is_spent:
            raise ConstraintFailed("The grammar hit a limit in another answer; send the request again.")
        return GuidanceConstraint(self._matcher.deep_copy(), self)


class GuidanceConstraint:
    """`engine.Constraint` on an llguidance matcher; see there for the methods.

    Args:
        matcher: its state.
        compiled: what it started from.
    """

    def __init__(self, matcher: llguidance.LLMatcher, compiled: CompiledGuidance) -> None:
        self._matcher = matcher
        self._compiled = compiled
        self._tokenizer = compiled.tokenizer
        self._n_vocab = compiled.n_vocab
        self._end_tokens = frozenset(compiled.tokenizer.eos_tokens)

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
        return GuidanceConstraint(self._matcher.deep_copy(), self._compiled)

    def completes(self, text: str) -> bool:
        """Tell whether an answer that is this text would be complete."""
        whole = self._compiled.start()
        return whole.feed(text.encode()) and whole.may_end

    def close(self) -> None:
        """Nothing: Rust frees the matcher with this object."""

    def _failed(self) -> ConstraintFailed:
        self._compiled.is_spent = True
        why = _first_lines(self._matcher.get_error()) or "no token can follow"
        return ConstraintFailed(f"The grammar could not be followed to its end: {why}")


def _first_lines(text: str) -> str:
    if "NoExtensionBias" in text:
        return "nothing matches it"
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    # (A pattern may be one that was made here, of thousands of characters.)
    return re.sub(r"/([^/]{80})[^/]{40,}/", r"/\1.../", "; ".join(lines[:3]))[:500]
