"""One answer in the making: its tokens, how many of them are computed, its sampler, constraint and text. Engine thread.

0            computed             length
|-- in KV -----|---- pending -------|          decode is just pending == 1

Tokens may be guessed beyond `length` and computed with the pending ones. Then `computed` is ahead of `length`, each
sampled token confirms the guess in its place or cuts `computed` back to it, and sampling goes on while one is left:

0                              length     computed
|-- in KV -----------------------|-- guessed --|
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from llm_local.engine.constraint import ask
from llm_local.engine.lookup import Lookup
from llm_local.engine.text import LogprobQueue, TextStream
from llm_local.engine.types import Delta, FinishReason, GenerationRequest, Progress, Token, TokenLogprob, Usage
from llm_local.errors import LLMLocalError

if TYPE_CHECKING:
    from llm_local.engine.backend import Sampler
    from llm_local.engine.constraint import Constraint
    from llm_local.engine.stream import Stream

NO_SLOT = -1


class Sequence:
    """A request on its way through the engine. Handed over by `submit`; the loop never touches it again.

    Attributes:
        tokens: int32 array [n_prompt + max_tokens]; the first `length` count.
        computed: how many of them have their KV in `slot`; ahead of `length` by what was guessed.
        forced: tokens that follow without a choice, and are still to be written: the last row needs no logits.
        n_guessed: tokens beyond `length` that the next batch computes, too.
        left_alone_until: until when nobody more urgent takes its place (`time.monotonic()`).
        held_by: the running sequence that is computing a prefix this one will share, and its length.
    """

    def __init__(
        self,
        request: GenerationRequest,
        index: int,
        stream: Stream,
        sampler: Sampler,
        constraint: Constraint | None = None,
    ) -> None:
        self.request = request
        self.index = index
        self.stream = stream
        self.sampler = sampler
        self.constraint = constraint
        self.forced: list[Token] = []
        self.n_forced = 0
        self.constraint_s = 0.0
        self.n_prompt = len(request.prompt)
        n_reference = len(request.prediction)
        source = np.empty(n_reference + self.n_prompt + request.max_tokens, np.int32)
        source[:n_reference] = request.prediction
        self.tokens = source[n_reference:]
        self.tokens[: self.n_prompt] = request.prompt
        self.length = self.n_prompt
        self.computed = 0
        self.lookup = (
            Lookup(source, n_reference, n_reference + self.n_prompt) if request.speculate and request.lookup else None
        )
        self.n_guessed = 0
        self._guess_is_predicted = self._guess_is_drafted = False
        self.n_drafted = self.n_accepted = 0
        self._outcome = (0, 0)
        self.n_predicted = self.n_predicted_accepted = 0
        self.cached = 0
        self.slot = NO_SLOT
        self.held_by: tuple[Sequence, int] | None = None
        self.finish: FinishReason | None = None
        self.text = TextStream(request.stop)
        self._new_text = ""
        # What a constraint is asked about when a stop string has cut off the rest.
        self._text_before_stop: list[str] | None = [] if constraint is not None and request.stop else None
        self.logprobs = LogprobQueue() if request.params.logprobs is not None else None
        self.prompt_logprobs: dict[int, TokenLogprob] = {}
        self.submitted_at = time.monotonic()
        self.left_alone_until = 0.0
        self.started_at: float | None = None
        self.first_token_at: float | None = None

    @property
    def pending(self) -> int:
        """Tokens that wait to be computed; 0 or less when the next one can be sampled."""
        return self.length - self.computed

    @property
    def n_generated(self) -> int:
        """Tokens of the answer so far, sampled and forced."""
        return self.length - self.n_prompt

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether the rows being computed now need logits although nothing is sampled from them."""
        return self.request.prompt_logprobs and self.first_token_at is None

    @property
    def is_sampled_freely(self) -> bool:
        """Whether all that is wanted of logits is a token after the last one."""
        request = self.request
        return self.constraint is None and request.max_tokens > 0 and not request.prompt_logprobs

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.finish is not None

    def started(self, cached: int) -> None:
        """Note that the sequence got a slot in which `cached` of its tokens were there already."""
        self.computed = cached
        if self.started_at is None:
            self.started_at = time.monotonic()
            self.cached = min(cached, self.n_prompt)

    def append(self, token: Token, piece: bytes, *, is_end: bool, logprob: TokenLogprob | None = None) -> None:
        """Take a token of the answer in. Sets `finish` when it was the last."""
        if self.computed > self.length:
            self._check_guess(token)
        self.tokens[self.length] = token
        self.length += 1
        if self.lookup is not None:
            self.lookup.note(token)
        if not is_end:
            text = self.text.push(piece)
            self._new_text += text
            if self._text_before_stop is not None:
                self._text_before_stop.append(text)
            if self.logprobs is not None and logprob is not None:
                self.logprobs.push(logprob)
        if is_end or self.text.stopped_by is not None or self._must_end:
            self.finish = FinishReason.STOP if self._is_whole else FinishReason.LENGTH
        elif self.n_generated >= self.request.max_tokens:
            self.finish = FinishReason.LENGTH

    def guessable(self, most: int) -> list[float]:
        """Return for k = 1, 2, ... up to `most` how many of the next k tokens can be guessed; empty when none can."""
        most = min(most, len(self.tokens) - self.length - 1)
        if self.lookup is None or most <= 0 or self.forced:
            return []
        return self.lookup.expected(len(self.lookup.guess(most)[0]))

    def guess(self, n: int) -> None:
        """Write `n` guessed tokens behind `length`, for the next batch; `guessable` has said that there are as many."""
        if n and self.lookup is not None:
            guess, self._guess_is_predicted = self.lookup.guess(n)
            self.tokens[self.length : self.length + n] = guess
        self.n_guessed, self._guess_is_drafted = n, False

    def guess_drafted(self, tokens: list[Token]) -> int:
        """Write a draft model's guess behind `length`; return how many tokens there was room for."""
        n = min(len(tokens), len(self.tokens) - self.length - 1)
        self.tokens[self.length : self.length + n] = tokens[:n]
        self.n_guessed, self._guess_is_predicted, self._guess_is_drafted = n, False, True
        return n

    def drafted_outcome(self) -> tuple[int, int]:
        """Return how many tokens of the last draft held, and how many were checked; then forget it."""
        outcome = self._outcome if self._guess_is_drafted else (0, 0)
        self._outcome, self._guess_is_drafted = (0, 0), False
        return outcome

    def _check_guess(self, token: Token) -> None:
        """Count a guess that was computed, and cut off what follows a wrong one."""
        held = int(self.tokens[self.length]) == token
        n = 1 if held else self.computed - self.length
        self.n_drafted += n
        self.n_accepted += held
        self._outcome = self._outcome[0] + held, self._outcome[1] + 1
        if self._guess_is_predicted:
            self.n_predicted += n
            self.n_predicted_accepted += held
        if not held:
            self.computed = self.length

    @property
    def _is_whole(self) -> bool:
        """Whether what is constrained is complete: a stop string cuts it short, and not always at a regular end."""
        constraint = self.constraint
        if constraint is None:
            return True
        if self._text_before_stop is not None and self.text.stopped_by is not None:
            return ask(constraint.completes, "".join(self._text_before_stop))
        return ask(lambda: constraint.may_end)

    @property
    def _must_end(self) -> bool:
        constraint = self.constraint
        return constraint is not None and ask(lambda: constraint.must_end)

    def delta(self) -> Delta | None:
        """Return what is new since the last delta, or None when nothing is."""
        text, self._new_text = self._new_text, ""
        if self.done:
            text += self.text.flush()
        logprobs = self.logprobs.release(self.text.n_released, last=self.done) if self.logprobs is not None else ()
        if not (text or logprobs or self.done):
            return None
        prompt_logprobs = tuple(self.prompt_logprobs[at] for at in sorted(self.prompt_logprobs))
        self.prompt_logprobs.clear()
        return Delta(self.index, text, logprobs, self.finish, self.usage(), None, prompt_logprobs)

    @property
    def shareable(self) -> int:
        """How many leading tokens may come from the cache; the last one is always computed, for its logits."""
        if self.wants_prompt_logits or not self.request.cache_prompt:
            return 0
        return self.length - 1

    def close(self) -> None:
        """Free the sampler and the constraint."""
        self.sampler.close()
        if self.constraint is not None:
            self.constraint.close()

    def failed(self, error: LLMLocalError) -> Delta:
        """Return the last delta of a sequence that ends with an error."""
        return Delta(self.index, error=error)

    def progress(self) -> Delta:
        """Return a delta that tells how far the prompt is."""
        elapsed = time.monotonic() - (self.started_at or self.submitted_at)
        done = min(self.computed, self.n_prompt)
        return Delta(self.index, progress=Progress(self.n_prompt, self.cached, done, elapsed * 1e3))

    def usage(self) -> Usage:
        """Return the costs so far."""
        now = time.monotonic()
        started = self.started_at or now
        first = self.first_token_at or now
        return Usage(
            prompt_tokens=self.n_prompt,
            cached_tokens=self.cached,
            completion_tokens=self.n_generated,
            queue_ms=(started - self.submitted_at) * 1e3,
            prompt_ms=(first - started) * 1e3,
            generation_ms=(now - first) * 1e3,
            forced_tokens=self.n_forced,
            constraint_ms=self.constraint_s * 1e3,
            drafted_tokens=self.n_drafted,
            accepted_tokens=self.n_accepted,
            predicted_tokens=self.n_predicted,
            predicted_accepted_tokens=self.n_predicted_accepted,
        )
