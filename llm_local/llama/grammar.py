"""llama.cpp's own grammar sampler as a constraint. What reaches it has passed `structured`'s guards: see there why.

Compiling runs on workers; a constraint belongs to the engine thread once its answer runs.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence as SequenceOf
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_grammar import LlamaGrammar

from llm_local.engine.constraint import Allowed, ConstraintFailed
from llm_local.engine.types import Token
from llm_local.llama.candidates import TOKEN_DATA
from llm_local.llama.model import LlamaModel

Silent = npt.NDArray[np.bool_]


class LlamaGrammars:
    """Compiles GBNF for one vocabulary; `structured.native.NativeGrammars`."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model

    def gbnf_of_schema(self, schema: str) -> str:
        """Return `LlamaGrammar.from_json_schema`'s grammar of a schema (JSON text).

        Raises:
            Exception: whatever the converter raises on what it does not know.
        """
        return str(LlamaGrammar.from_json_schema(schema, verbose=False)._grammar)

    def is_token(self, text: str) -> bool:
        """Tell whether the vocabulary has a token of its own for a text, which it also is in an answer."""
        tokens = self._model.tokenize(text, add_special=False)
        return len(tokens) == 1 and self._model.piece(tokens[0]) == text.encode()

    def compile(self, gbnf: str, named: frozenset[str]) -> CompiledLlamaGrammar | None:
        """Compile a grammar whose start is `root`; None when llama.cpp cannot parse it.

        Args:
            named: tokens that the grammar names (`<tool_call>`).
        """
        grammar = LlamaGrammar.from_string(gbnf, verbose=False)
        text, root = grammar._grammar.encode(), grammar._root.encode()
        sampler = llama_cpp.llama_sampler_init_grammar(self._model.vocab, text, root)
        if not sampler:
            return None
        assert self._model.byte_tokens, "made here, on a worker"
        return CompiledLlamaGrammar(self._model, sampler, self._silent(named))

    def _silent(self, named: frozenset[str]) -> Silent:
        """Return which tokens are no text in an answer, but for ends and for those that the grammar names.

        llama.cpp takes a control token for the text of its name: in a string it would count, and nobody would see it.
        """
        silent = self._model.is_silent.copy()
        silent[list(self._model.end_tokens)] = False
        for name in named:
            by_id = re.fullmatch(r"<\[(\d+)\]>", name)
            silent[[int(by_id[1])] if by_id else self._model.tokenize(name, add_special=False)] = False
        return silent


class CompiledLlamaGrammar:
    """A compiled grammar, from which any number of constraints start."""

    def __init__(self, model: LlamaModel, sampler: Any, silent: Silent) -> None:
        self._model = model
        self._sampler = sampler
        self._silent = silent

    @property
    def is_spent(self) -> bool:
        """Never: answers share nothing that changes."""
        return False

    def start(self) -> LlamaConstraint:
        """Return a constraint for one answer."""
        return LlamaConstraint(self._model, llama_cpp.llama_sampler_clone(self._sampler), self._silent, self)

    def __del__(self) -> None:
        if self._sampler:
            llama_cpp.llama_sampler_free(self._sampler)
            self._sampler = None


class LlamaConstraint:
    """`engine.Constraint` on a grammar sampler; see there for the methods.

    One token is checked by handing the sampler an array of one. Only a token that passed may be accepted: llama.cpp
    ends the process otherwise.
    """

    def __init__(self, model: LlamaModel, sampler: Any, silent: Silent, compiled: CompiledLlamaGrammar) -> None:
        self._model = model
        self._sampler = sampler
        self._silent = silent
        self._compiled = compiled
        self._n_vocab = model.n_vocab
        self._an_end = next(iter(sorted(model.end_tokens)), None)
        self._one = np.zeros(1, TOKEN_DATA)
        self._array = _token_array(self._one)

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete as it is."""
        return self._an_end is not None and self._passes(self._an_end)

    @property
    def must_end(self) -> bool:
        """Unknown without a look at all tokens: the model says so itself, with a token that ends the answer."""
        return False

    def allows(self, token: Token) -> bool:
        """Tell whether the token may come next."""
        return self._passes(token)

    def _passes(self, token: Token) -> bool:
        if self._silent[token]:
            return False
        self._one[0] = (token, 0.0, 0.0)
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(self._array))
        return bool(self._one["logit"][0] == 0.0)

    def allowed(self) -> Allowed:
        """Return which tokens may come next (25 ms for 150,000 of them)."""
        data = np.zeros(self._n_vocab, TOKEN_DATA)
        data["id"] = np.arange(self._n_vocab)
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(_token_array(data)))
        allowed: Allowed = (data["logit"] == 0.0) & ~self._silent
        if not allowed.any():
            raise ConstraintFailed("The grammar could not be followed to its end: no token can follow.")
        return allowed

    def accept(self, token: Token) -> None:
        """Move on by a token."""
        if not self._passes(token):
            raise ConstraintFailed("The grammar could not be followed: a token does not match it.")
        llama_cpp.llama_sampler_accept(self._sampler, token)

    def forced(self) -> SequenceOf[Token]:
        """Return nothing: llama.cpp does not say what is the only way on."""
        return ()

    def feed(self, text: bytes) -> bool:
        """Move on by text, byte by byte; False when it cannot follow."""
        for at in range(len(text)):
            token = self._model.byte_tokens.get(text[at : at + 1])
            if token is None or not self._passes(token):
                return False
            llama_cpp.llama_sampler_accept(self._sampler, token)
        return True

    def copy(self) -> LlamaConstraint:
        """Return a constraint in the same state."""
        return LlamaConstraint(self._model, llama_cpp.llama_sampler_clone(self._sampler), self._silent, self._compiled)

    def completes(self, text: str) -> bool:
        """Tell whether an answer that is this text would be complete."""
        whole = self._compiled.start()
        try:
            return whole.feed(text.encode()) and whole.may_end
        finally:
            whole.close()

    def close(self) -> None:
        """Free the sampler."""
        if self._sampler:
            llama_cpp.llama_sampler_free(self._sampler)
            self._sampler = None

    def __del__(self) -> None:
        self.close()


def _token_array(data: npt.NDArray[Any]) -> Any:
    """Return a `llama_token_data_array` over numpy's memory, which must outlive it."""
    array: Any = llama_cpp.llama_token_data_array()
    array.data = ctypes.cast(data.ctypes.data, ctypes.POINTER(llama_cpp.llama_token_data))
    array.size, array.selected = len(data), -1
    return array
