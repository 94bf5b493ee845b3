"""What is appended to a sequence after a decode: sampled tokens, confirmed guesses, forced tokens. Engine thread."""

from __future__ import annotations

import time
from collections.abc import Callable

from llm_local.engine.backend import Backend
from llm_local.engine.batch import Part
from llm_local.engine.constraint import ConstraintFailed, ask
from llm_local.engine.logprobs import token_logprob
from llm_local.engine.sequence import Sequence
from llm_local.engine.stats import EngineStats
from llm_local.engine.types import Token

MOST_REFUSALS = 32
"""Draws for one token; a constraint that knows its mask needs two at the most."""


class Writer:
    """Writes answers.

    Args:
        backend: whose logits are sampled.
        settle: called for a sequence whose guesses were checked.
        forced_rows: how many rows a sequence may have in the next batch, the last token's with them, while its
            constraint leaves no choice.
        stats: counters to keep.
    """

    def __init__(
        self,
        backend: Backend,
        settle: Callable[[Sequence], None],
        forced_rows: Callable[[Sequence], int],
        stats: EngineStats,
    ) -> None:
        self._backend = backend
        self._settle = settle
        self._forced_rows = forced_rows
        self._stats = stats

    def write(self, sequence: Sequence, part: Part) -> None:
        """Write what is forced, or sample a token, and further ones as long as they were guessed and computed."""
        try:
            while sequence.pending <= 0 and not sequence.done:
                if not sequence.forced:
                    self._sample(sequence, part.row_before(sequence.length))
                    self._ask_what_is_forced(sequence)
                if sequence.forced:
                    self._write_forced(sequence, self._forced_rows(sequence))
        finally:
            if sequence.n_guessed:
                self._settle(sequence)

    def _sample(self, sequence: Sequence, row: int) -> None:
        began = time.perf_counter()
        token = self._choose(sequence, row)
        sequence.sampler.accept(token)
        self._stats.sample_s += time.perf_counter() - began
        self._stats.sampled_tokens += 1
        n_top = sequence.request.params.logprobs
        logprob = None if n_top is None else token_logprob(self._backend, row, token, n_top)
        backend = self._backend
        sequence.append(token, backend.piece(token), is_end=backend.is_end(token), logprob=logprob)

    def _choose(self, sequence: Sequence, row: int) -> Token:
        """Sample, and once more among what is allowed if the constraint refuses the token.

        A token t of probability p(t) comes out with p(t) + (1 - Z) p(t) / Z = p(t) / Z, where Z is the mass of all
        allowed tokens: as if the others had been masked at once.
        """
        token = sequence.sampler.sample(row)
        constraint = sequence.constraint
        if constraint is None:
            return token
        began = time.perf_counter()
        for _ in range(MOST_REFUSALS):
            if ask(constraint.allows, token):
                break
            self._stats.refused_tokens += 1
            token = sequence.sampler.sample(row, ask(constraint.allowed))
        else:
            raise ConstraintFailed("The grammar could not be followed: every token that was tried is refused.")
        if not self._backend.is_end(token):
            ask(constraint.accept, token)
        sequence.constraint_s += time.perf_counter() - began
        return token

    def begin(self, sequence: Sequence) -> None:
        """Append all that the constraint forces before the first sampled token: it is computed with the prompt."""
        self._ask_what_is_forced(sequence)
        self._write_forced(sequence, len(sequence.forced) + sequence.pending)

    def _ask_what_is_forced(self, sequence: Sequence) -> None:
        """Note what the constraint leaves no choice about.

        With log probabilities every token is sampled, as each needs its own logits.
        """
        constraint = sequence.constraint
        if constraint is None or sequence.done or sequence.request.params.logprobs is not None:
            return
        began = time.perf_counter()
        sequence.forced = list(ask(constraint.forced))
        sequence.constraint_s += time.perf_counter() - began

    def _write_forced(self, sequence: Sequence, most_rows: int) -> None:
        """Append forced tokens until the next batch has so many rows of the sequence, or sampling can go on."""
        constraint = sequence.constraint
        if constraint is None:
            return
        began = time.perf_counter()
        n = 0
        for token in sequence.forced:
            if sequence.done or sequence.pending >= most_rows or sequence.n_generated >= sequence.request.max_tokens:
                break
            n += 1
            ask(constraint.accept, token)
            sequence.sampler.accept(token)
            sequence.append(token, self._backend.piece(token), is_end=False)
        del sequence.forced[:n]
        sequence.n_forced += n
        sequence.constraint_s += time.perf_counter() - began
