"""Narrows the vocabulary to the tokens a sampler chain can choose, where that provably changes nothing. Engine thread.

llama.cpp's samplers walk over the whole vocabulary: with 152k tokens a plain draw costs 1.7 ms, `top_p` 2.3 ms and
`top_k` 0.3 ms a token and sequence. Nearly all of these tokens cannot be chosen. So numpy takes those within a margin
of the largest logit (0.06 ms), the chain runs on them alone, and a check after biases and penalties says whether
the outcome is the same (or, for a plain draw, equally distributed). If not, the chain sees everything.

    logit   max ........ floor = max - margin ................................ min
            |---- candidates ----|---- outside: below the floor, never lifted ----|
"""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from llm_local.engine.backend import Logits
from llm_local.engine.types import SamplingParams, Token
from llm_local.errors import DecodeFailed

MOST_LOWERED = 256
"""Lowered tokens that `top_k` makes room for; with more it is checked whether enough are left."""

CAPACITY = 16384
"""Most candidates; with more, running the chain on everything is as quick."""

TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data of llama.h."""

# Called with the interpreter lock held: they take microseconds, and giving the lock away costs more than that
# when the event loop is busy.
_held = ctypes.PyDLL(llama_cpp.llama_cpp._lib._name)
_apply = _held.llama_sampler_apply
_apply.argtypes = [ctypes.c_void_p, ctypes.POINTER(llama_cpp.llama_token_data_array)]
_apply.restype = None
accept = _held.llama_sampler_accept
accept.argtypes = [ctypes.c_void_p, llama_cpp.llama_token]
accept.restype = None


class Rule(Enum):
    """What decides which tokens can be chosen."""

    GREEDY = "greedy"
    TOP_K = "top_k"
    TOP_P = "top_p"
    MIN_P = "min_p"
    DRAW = "draw"


MARGINS = {Rule.GREEDY: (4.0, 10.0), Rule.TOP_P: (8.0, 12.0), Rule.DRAW: (10.0,)}
"""Distances of the floor from the largest logit that are tried, in natural-log units."""

MIN_P_SPARE = (1.0, 6.0)
"""Units below what `min_p` keeps that are tried, for penalties that lower the largest logit."""

GROUP = 128
"""Tokens whose largest logit stands for them: the k-th largest of those is not above the k-th largest of all."""


def rule_of(params: SamplingParams) -> Rule | None:
    """Return the rule of a chain, or None when it must see the whole vocabulary.

    Penalties that reward repetition could lift a token from below the floor; typical, Mirostat and XTC (but for a
    `top_k` before them) look at the whole distribution.
    """
    lifts = params.repeat_penalty < 1.0 or params.presence_penalty < 0 or params.frequency_penalty < 0
    if lifts:
        return None
    if params.temperature <= 0.0:
        return Rule.GREEDY
    if params.mirostat or params.typical_p < 1.0:
        return None if params.mirostat or params.top_k <= 0 else Rule.TOP_K
    if params.top_k > 0:
        return Rule.TOP_K
    if params.xtc_probability > 0.0:
        return None
    if params.top_p < 1.0:
        return Rule.TOP_P
    return Rule.MIN_P if params.min_p > 0.0 else Rule.DRAW


class Candidates:
    """The native array that chains run on; one for all samplers of a context, as they run one after another."""

    def __init__(self, n_vocab: int) -> None:
        self.data = np.zeros(max(n_vocab, CAPACITY), TOKEN_DATA)
        self.all_ids = np.arange(n_vocab)
        self._mask = np.zeros(n_vocab, bool)
        self.native = llama_cpp.llama_token_data_array()
        self.pointer = ctypes.pointer(self.native)
        self._address: Any = ctypes.cast(self.data.ctypes.data, ctypes.POINTER(llama_cpp.llama_token_data))

    def above(self, logits: Logits, floor: float) -> npt.NDArray[np.intp]:
        """Return the tokens whose logits are not below the floor."""
        np.greater_equal(logits, np.float32(floor), out=self._mask)
        return self._mask.nonzero()[0]

    def fill(self, ids: npt.NDArray[np.intp], logits: Logits) -> None:
        """Set the array to these tokens."""
        n = len(ids)
        self.data["id"][:n] = ids
        self.data["logit"][:n] = logits
        self._reset(n, is_sorted=False)

    def keep(self, order: npt.NDArray[np.intp]) -> None:
        """Keep the tokens at these places, which are in descending order of their logits."""
        self.data[: len(order)] = self.data[order]
        self._reset(len(order), is_sorted=True)

    def apply(self, sampler: int) -> None:
        """Run one sampler on the array."""
        _apply(sampler, self.pointer)

    @property
    def chosen(self) -> Token:
        """The token that the last sampler of a chain selected.

        Raises:
            DecodeFailed: it selected none, or one without a logit (they are not numbers).
        """
        selected = int(self.native.selected)
        if not 0 <= selected < self.native.size or math.isnan(self.native.data[selected].logit):
            raise DecodeFailed("No token could be sampled: the model's logits are not numbers.")
        return int(self.native.data[selected].id)

    def _reset(self, n: int, *, is_sorted: bool) -> None:
        native = self.native
        native.data, native.size, native.selected, native.sorted = self._address, n, -1, is_sorted


@dataclass(slots=True)
class Chain:
    """The samplers of a native chain: those that edit logits, and those that choose.

    Attributes:
        native: the chain that owns them.
        top_p: the one among `choosers` that stands for `top_p`, which is applied here, with the mass of all tokens.
    """

    native: int
    edits: list[int]
    choosers: list[int]
    top_p: int | None = None


class NarrowedSampling:
    """Runs a chain on candidates.

    Args:
        candidates: the shared array.
        chain: what to run.
        params: of the request.
        rule: from `rule_of`.
        lifted: tokens whose logits the chain raises.
        lowered: tokens whose logits it may lower: biased ones, and what penalties have seen of the prompt.
        seed: for the choice between candidates and the rest.
    """

    def __init__(
        self,
        candidates: Candidates,
        chain: Chain,
        params: SamplingParams,
        rule: Rule,
        lifted: list[Token],
        lowered: list[Token],
        seed: int,
    ) -> None:
        self._candidates = candidates
        self._chain = chain
        self._params = params
        self._rule = rule
        self._margins: tuple[float, ...] = MARGINS.get(rule, ())
        if rule is Rule.MIN_P:
            self._margins = tuple(spare - math.log(params.min_p) for spare in MIN_P_SPARE)
        # A lowered token below the floor cannot be chosen; it matters only where the mass of all tokens does.
        needs_mass = rule in (Rule.TOP_P, Rule.DRAW)
        self._always = set(lifted) | (set(lowered) if needs_mass else set())
        self._n_lowered = len(set(lowered))
        self._remember = bool(chain.edits) and needs_mass
        self._random = random.Random(seed)
        self._checks: dict[Rule, Callable[..., Token | bool]] = {
            Rule.GREEDY: lambda *_: True,
            Rule.TOP_K: self._holds_top_k,
            Rule.TOP_P: self._cut_top_p,
            Rule.MIN_P: self._holds_min_p,
            Rule.DRAW: self._draw_outside,
        }

    def sample(self, logits: Logits) -> Token | None:
        """Return the token chosen from these logits [n_vocab], or None when the chain must see all of them."""
        for floor in self._floors(logits):
            outcome = self._try(logits, floor)
            if outcome is not False:
                return self._choose() if outcome is True else int(outcome)
        return None

    def _floors(self, logits: Logits) -> list[float]:
        """Return the floors to try, highest first."""
        if self._rule is not Rule.TOP_K:
            largest = float(logits.max())
            if not math.isfinite(largest):
                return []
            return [largest - margin for margin in self._margins]
        # So many more as there are lowered tokens, that k others are above the floor; where that is much, a guess.
        k = self._params.top_k + min(self._n_lowered, MOST_LOWERED)
        groups = len(logits) // GROUP
        if k > groups:
            return []
        best = logits[: groups * GROUP].reshape(GROUP, groups).max(axis=0)
        return [float(np.partition(best, groups - k)[groups - k])]

    def _try(self, logits: Logits, floor: float) -> Token | bool:
        """Put the tokens above the floor into the array; False when more of them are needed to be right."""
        candidates = self._candidates
        ids = candidates.above(logits, floor)
        if self._always:
            ids = np.union1d(ids, np.fromiter(self._always, np.int64, len(self._always)))
        if not 0 < len(ids) <= CAPACITY:
            return False
        raw = logits[ids]
        candidates.fill(ids, raw)
        for sampler in self._chain.edits:
            candidates.apply(sampler)
        values = candidates.data["logit"][: len(ids)]
        if self._chain.edits and float(values.max()) < floor:
            return False
        return self._checks[self._rule](values, floor, logits, ids, raw)

    def note(self, token: Token) -> None:
        """Remember that penalties have seen a token."""
        self._n_lowered += bool(self._chain.edits)
        if self._remember:
            self._always.add(token)

    def _choose(self) -> Token:
        for sampler in self._chain.choosers:
            if sampler != self._chain.top_p or self._rule is not Rule.TOP_P:
                self._candidates.apply(sampler)
        return self._candidates.chosen

    def _holds_top_k(self, values: Logits, floor: float, *_: Any) -> bool:
        return int((values >= floor).sum()) >= self._params.top_k

    def _holds_min_p(self, values: Logits, floor: float, *_: Any) -> bool:
        return float(values.max()) + math.log(self._params.min_p) >= floor

    def _cut_top_p(self, values: Logits, floor: float, logits: Logits, ids: Any, raw: Logits) -> bool:
        """Keep the nucleus, whose mass is a share of all tokens'; False when it reaches below the floor."""
        largest = float(values.max())
        order = np.argsort(-values, kind="stable")
        mass = np.cumsum(np.exp(values[order] - largest, dtype=np.float64))
        outside = float(_mass_outside(logits, ids, largest, 1.0).sum(dtype=np.float64))
        wanted = self._params.top_p * (float(mass[-1]) + outside)
        last = int(np.searchsorted(mass, wanted))
        if last >= len(order) or values[order[last]] < floor:
            return False
        self._candidates.keep(order[: last + 1])
        return True

    def _draw_outside(self, values: Logits, floor: float, logits: Logits, ids: Any, raw: Logits) -> Token | bool:
        """Decide whether the draw falls on a candidate (True: the chain says which) or on another token."""
        largest, temperature = float(values.max()), self._params.temperature
        inside = float(np.exp((values - largest) / temperature, dtype=np.float64).sum())
        mass = _mass_outside(logits, ids, largest, temperature)
        outside = float(mass.sum(dtype=np.float64))
        if not math.isfinite(inside + outside):
            return False
        at = self._random.random() * (inside + outside) - inside
        if at < 0:
            return True
        cumulated = np.cumsum(mass, dtype=np.float64)
        return int(np.searchsorted(cumulated, min(at, float(cumulated[-1]) * (1 - 1e-12)), side="right"))


def _mass_outside(logits: Logits, ids: npt.NDArray[np.intp], largest: float, temperature: float) -> Logits:
    """Return exp((logit - largest) / temperature) [n_vocab] of each token, and 0 for the candidates `ids`.

    A candidate's logit may be above `largest`, which is what is left after penalties; no other one's is.
    """
    mass = np.subtract(logits, np.float32(largest))
    np.minimum(mass, np.float32(0.0), out=mass)
    np.multiply(mass, np.float32(1.0 / temperature), out=mass)
    np.exp(mass, out=mass)
    mass[ids] = 0.0
    return mass
