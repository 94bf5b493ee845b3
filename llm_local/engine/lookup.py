"""Guesses the next tokens of an answer from what it may be repeating: its prompt, a prediction, itself. Engine thread.

Prompt lookup: where the last few tokens stood before, what followed them then is the guess now. A guess is followed
token by token whether it is computed ahead or not, so that how often guesses hold is measured for nothing.

    source   | prediction | prompt ...  t u v w x y z ... | answer ...  t u v |
                                              ^ at: the guess is w x y z ...
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm_local.engine.types import Token

Tokens = npt.NDArray[np.int32]

LEAST_MATCH, MOST_MATCH = 2, 8
"""Tokens before a guess that must be the same, and that are compared to choose among several places."""

MOST_PLACES = 256
"""Earlier places of the last token that are looked at, the latest first."""

RUNS = (4, 8, 16)
"""A guess that has held for so many tokens is likelier to go on; each class of runs has its own measure."""

FORGET = 0.98
"""Weight that older outcomes keep with each new one."""

PRIOR_HELD, PRIOR_TRIED = 1.0, 2.0

UNLIKELY = 0.1
"""Chance below which a token that depends on all guesses before it is not considered."""


class Lookup:
    """Follows one answer.

    Args:
        source: int32 array of everything that may be repeated, of which the first `length` are there.
        n_reference: how many of them come before the prompt: the text that the client predicts.
        length: tokens so far.
    """

    def __init__(self, source: Tokens, n_reference: int, length: int) -> None:
        self._source = source
        self._n_reference = n_reference
        self._length = length
        # A prediction is of the whole answer: it is believed from its first token on.
        self._at = 0 if n_reference else -1
        self._run = RUNS[0] if n_reference else 0
        self._left_at = 0
        self._held = [PRIOR_HELD] * (len(RUNS) + 1)
        self._tried = [PRIOR_TRIED] * (len(RUNS) + 1)

    def note(self, token: Token) -> None:
        """Take in the next token of the answer (it is in `source` already)."""
        self._length += 1
        at = self._at
        if at < 0:
            return
        kind = _kind(self._run)
        held = int(self._source[at]) == token
        self._held[kind] = FORGET * self._held[kind] + held
        self._tried[kind] = FORGET * self._tried[kind] + 1.0
        if held:
            self._at, self._run = at + 1, self._run + 1
            if self._at == self._n_reference:
                self._at = -1
        else:
            if at < self._n_reference:
                self._left_at = at
            self._at, self._run = -1, 0

    def guess(self, most: int) -> tuple[Tokens, bool]:
        """Return up to `most` next tokens, often none, and whether they are from the prediction."""
        if self._at < 0:
            self._find()
        at = self._at
        if at < 0:
            return self._source[:0], False
        from_reference = at < self._n_reference
        end = self._n_reference if from_reference else self._length
        return self._source[at : min(at + most, end)], from_reference

    def expected(self, most: int) -> list[float]:
        """Return for k = 1, 2, ... up to `most` how many of the next k guessed tokens will hold.

        The list ends earlier where the next one is unlikely to be reached.
        """
        out: list[float] = []
        chance, total, run = 1.0, 0.0, self._run
        rates = [held / tried for held, tried in zip(self._held, self._tried, strict=True)]
        while len(out) < most and chance > UNLIKELY:
            chance *= rates[_kind(run)]
            total += chance
            run += 1
            out.append(total)
        return out

    def _find(self) -> None:
        """Look for the last tokens in what came before: the longest match, and of those the latest."""
        source, length = self._source, self._length
        if length < LEAST_MATCH + 1:
            return
        last = source[max(length - MOST_MATCH, 0) : length][::-1]
        places = np.flatnonzero(source[LEAST_MATCH - 1 : length - 1] == last[0])[-MOST_PLACES:] + LEAST_MATCH - 1
        places = places[source[places - 1] == last[1]]
        matched = LEAST_MATCH
        while matched < len(last):
            longer = places[places >= matched]
            longer = longer[source[longer - matched] == last[matched]]
            if not len(longer):
                break
            places, matched = longer, matched + 1
        if len(places):
            self._at, self._run = self._nearest(places) + 1, matched

    def _nearest(self, places: npt.NDArray[np.intp]) -> int:
        """Choose among equal matches: in a prediction the one closest to where it was left, else the latest."""
        predicted = places[places < self._n_reference - 1]
        if len(predicted):
            return int(predicted[np.abs(predicted - self._left_at).argmin()])
        return int(places[-1])


def _kind(run: int) -> int:
    for kind, limit in enumerate(RUNS):
        if run < limit:
            return kind
    return len(RUNS)
