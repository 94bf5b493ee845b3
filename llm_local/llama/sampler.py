"""`SamplingParams` to a `llama_sampler` chain, built once per request. Sampling runs on the engine thread.

Order of the chain, as in llama.cpp's `common_sampler_init`: biases, penalties, DRY, then truncation (`top_k`, typical,
`top_p`, `min_p`), XTC, temperature and the draw. `candidates.py` keeps the chain from walking over tokens that
cannot be chosen.
"""

from __future__ import annotations

import ctypes
import math
import secrets
from dataclasses import replace
from typing import Any

import llama_cpp
import numpy as np

from llm_local.engine.backend import Logits
from llm_local.engine.constraint import Allowed
from llm_local.engine.types import SamplingParams, Token
from llm_local.llama.candidates import CAPACITY, Candidates, Chain, NarrowedSampling, accept, rule_of
from llm_local.llama.device_sampling import DeviceSampling, runs_on_device
from llm_local.llama.model import LlamaModel

NARROW_FROM = 8192
"""Half the size of a vocabulary that is worth narrowing."""

MOST_BIASES = 64
"""With more, narrowing costs more than it saves: on candidates llama.cpp looks for each biased token in turn."""

# Held lock: a look-up of a microsecond, once a token.
_get_logits = ctypes.PyDLL(llama_cpp.llama_cpp._lib._name).llama_get_logits_ith
_get_logits.argtypes = [llama_cpp.llama_context_p_ctypes, ctypes.c_int32]
_get_logits.restype = ctypes.c_void_p

LEAST_TEMPERATURE, LEAST_REPEAT_PENALTY = 1e-5, 1e-5
"""Below them logits divided by either overflow 32-bit floats, and what is chosen has nothing to do with them. At these
values the likeliest token, or one that was repeated, has all of the probability already."""

MIROSTAT_M = 100
"""Tokens that Mirostat 1 estimates its slope from (the paper's value, arXiv:2007.14966)."""


class LlamaSampler:
    """One chain, over the logits of the context whose pointer it is given.

    Args:
        model: whose vocabulary is sampled.
        context: native context that holds the logits.
        candidates: array shared by all samplers of the context.
        params: what to build.
        prompt: its last tokens are what `repeat_penalty` and DRY have seen before the first sample.
        n_ctx: what a window of -1 means.
        device: what samples where the logits are, if that is wanted.
    """

    def __init__(
        self,
        model: LlamaModel,
        context: Any,
        candidates: Candidates,
        params: SamplingParams,
        prompt: tuple[Token, ...],
        n_ctx: int,
        device: DeviceSampling | None = None,
    ) -> None:
        params = _computable(params)
        self._device = device
        self._runs_on_device = device is not None and runs_on_device(params)
        self._device_slot: int | None = None
        self._context = context
        self._n_vocab = model.n_vocab
        self._candidates = candidates
        self._all = candidates.all_ids
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        self._samplers = Chain(self._chain, [], [])
        self._seed = secrets.randbits(32) if params.seed is None else params.seed % 2**32
        # 0xFFFFFFFF asks llama.cpp for a random seed, which would make that one seed not repeatable.
        self._seed = 0 if self._seed == llama_cpp.LLAMA_DEFAULT_SEED else self._seed
        self._lifted: list[Token] = []
        self._lowered: list[Token] = []
        try:
            self._add_biases(model, params)
            self._add_penalties(model, params, prompt, n_ctx)
            self._add_draw(model, params)
        except BaseException:
            self.close()
            raise
        rule = rule_of(params)
        self._narrowed: NarrowedSampling | None = None
        many_biases = len(params.logit_bias) > MOST_BIASES
        if rule is not None and not many_biases and model.n_vocab > 2 * NARROW_FROM:
            self._narrowed = NarrowedSampling(
                candidates, self._samplers, params, rule, self._lifted, self._lowered, self._seed
            )

    def enter(self, slot: int, *, freely: bool) -> None:
        """Put the chain, with the state that it has, on the device; see `Sampler.enter`."""
        if self._device is not None:
            chain = llama_cpp.llama_sampler_clone(self._chain) if freely and self._runs_on_device else None
            self._device_slot = slot if self._device.put(slot, chain) else None

    def leave(self) -> None:
        """Take the state back from the device; see `Sampler.leave`."""
        if self._device is not None and self._device_slot is not None:
            chain = llama_cpp.llama_sampler_clone(self._device.chain(self._device_slot))
            self._device_slot = None
            self.close()
            # What narrowed it knew the samplers of the former chain.
            self._chain, self._narrowed = chain, None

    def sample(self, row: int, allowed: Allowed | None = None) -> Token:
        """Choose the token after output row `row` of the last decode, among all or the `allowed` [n_vocab]."""
        if self._device is not None and self._device_slot is not None:
            return self._device.token(row)
        logits = row_logits(self._context, row, self._n_vocab)
        if allowed is None:
            ids = None
        else:
            ids = allowed.nonzero()[0]
            if len(ids) > CAPACITY:
                logits, ids = np.where(allowed, logits, np.float32(-np.inf)), None
        if ids is None and self._narrowed is not None:
            token = self._narrowed.sample(logits)
            if token is not None:
                return token
        # The chain on all tokens, or on the few that are allowed: what is left out could not be chosen.
        if ids is None:
            self._candidates.fill(self._all, logits)
        else:
            self._candidates.fill(ids, logits[ids])
        llama_cpp.llama_sampler_apply(self._chain, self._candidates.pointer)
        return self._candidates.chosen

    def accept(self, token: Token) -> None:
        """Let penalties know of a token that was taken."""
        if self._device is not None and self._device_slot is not None:
            accept(self._device.chain(self._device_slot), token)
            return
        accept(self._chain, token)
        if self._narrowed is not None:
            self._narrowed.note(token)

    def close(self) -> None:
        """Free the chain and its samplers; what the device has of it stays in the slot until another one comes."""
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None

    def _add(self, sampler: Any, *, edits: bool = False) -> Any:
        # A NULL in a chain ends the process at the first sample.
        if not sampler:
            raise RuntimeError("llama.cpp could not build a sampler")
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)
        (self._samplers.edits if edits else self._samplers.choosers).append(_address(sampler))
        return sampler

    def _add_biases(self, model: LlamaModel, params: SamplingParams) -> None:
        biases = dict(params.logit_bias)
        biases.update(dict.fromkeys(model.suppressed_tokens, -math.inf))
        if params.ignore_eos:
            biases.update(dict.fromkeys(model.end_tokens, -math.inf))
        if biases:
            array = (llama_cpp.llama_logit_bias * len(biases))(
                *(llama_cpp.llama_logit_bias(*b) for b in biases.items())
            )
            self._add(llama_cpp.llama_sampler_init_logit_bias(model.n_vocab, len(biases), array), edits=True)
            for token, bias in biases.items():
                (self._lifted if bias > 0 else self._lowered).append(token)

    def _add_penalties(self, model: LlamaModel, params: SamplingParams, prompt: tuple[Token, ...], n_ctx: int) -> None:
        """Add `repeat_penalty` and DRY, which look back into the prompt, and OpenAI's, which do not."""
        repeat_n = n_ctx if params.repeat_last_n < 0 else min(params.repeat_last_n, n_ctx)
        if params.repeat_penalty != 1.0 and repeat_n:
            repeat = llama_cpp.llama_sampler_init_penalties(model.n_vocab, repeat_n, params.repeat_penalty, 0.0, 0.0)
            self._accept(self._add(repeat, edits=True), prompt[-repeat_n:])
        if params.presence_penalty or params.frequency_penalty:
            frequency, presence = params.frequency_penalty, params.presence_penalty
            penalty = llama_cpp.llama_sampler_init_penalties(model.n_vocab, n_ctx, 1.0, frequency, presence)
            self._add(penalty, edits=True)
        dry_n = n_ctx if params.dry_penalty_last_n < 0 else min(params.dry_penalty_last_n, n_ctx)
        if params.dry_multiplier and dry_n:
            breakers = [text.encode() for text in params.dry_sequence_breakers]
            dry = llama_cpp.llama_sampler_init_dry(
                model.vocab,
                params.dry_multiplier,
                params.dry_base,
                params.dry_allowed_length,
                dry_n,
                (ctypes.c_char_p * len(breakers))(*breakers),
                len(breakers),
            )
            self._accept(self._add(dry, edits=True), prompt[-dry_n:])

    def _accept(self, sampler: Any, tokens: tuple[Token, ...]) -> None:
        for token in tokens:
            llama_cpp.llama_sampler_accept(sampler, token)
        self._lowered += tokens

    def _add_draw(self, model: LlamaModel, params: SamplingParams) -> None:
        if params.temperature <= 0.0:
            self._add(llama_cpp.llama_sampler_init_greedy())
            return
        seed = self._seed
        if params.mirostat:
            self._add(llama_cpp.llama_sampler_init_temp(params.temperature))
            self._add(self._mirostat(model, params, seed))
            return
        if params.top_k > 0:
            self._add(llama_cpp.llama_sampler_init_top_k(params.top_k))
        if params.typical_p < 1.0:
            self._add(llama_cpp.llama_sampler_init_typical(params.typical_p, 1))
        if params.top_p < 1.0:
            self._samplers.top_p = _address(self._add(llama_cpp.llama_sampler_init_top_p(params.top_p, 1)))
        if params.min_p > 0.0:
            self._add(llama_cpp.llama_sampler_init_min_p(params.min_p, 1))
        if params.xtc_probability > 0.0:
            self._add(llama_cpp.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 1, seed))
        if params.temperature != 1.0:
            self._add(llama_cpp.llama_sampler_init_temp(params.temperature))
        self._add(llama_cpp.llama_sampler_init_dist(seed))

    @staticmethod
    def _mirostat(model: LlamaModel, params: SamplingParams, seed: int) -> Any:
        tau, eta = params.mirostat_tau, params.mirostat_eta
        if params.mirostat == 1:
            return llama_cpp.llama_sampler_init_mirostat(model.n_vocab, seed, tau, eta, MIROSTAT_M)
        return llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)


def _computable(params: SamplingParams) -> SamplingParams:
    """Return the parameters with those in range that 32-bit floats cannot compute with."""
    temperature = params.temperature if params.temperature >= LEAST_TEMPERATURE else 0.0
    return replace(params, temperature=temperature, repeat_penalty=max(params.repeat_penalty, LEAST_REPEAT_PENALTY))


def _address(sampler: Any) -> int:
    return ctypes.cast(sampler, ctypes.c_void_p).value or 0


def row_logits(context: Any, row: int, n_vocab: int) -> Logits:
    """Return the logits [n_vocab] of an output row: a view that is valid until the next decode."""
    pointer = _get_logits(context, row)
    if not pointer:
        raise RuntimeError(f"row {row} of the last batch has no logits")
    return np.ctypeslib.as_array((ctypes.c_float * n_vocab).from_address(pointer))
