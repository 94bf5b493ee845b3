"""`SamplingParams` to a `llama_sampler` chain, built once per request. Sampling runs on the engine thread.

Order of the chain, as in llama.cpp's `common_sampler_init`: biases, penalties, DRY, then truncation from the cheapest
cut (`top_k`) to the dearest, XTC, temperature and the draw. A chain over 152k tokens costs 0.3 ms with `top_k` first
and 6 to 10 ms with `top_p` alone.
"""

from __future__ import annotations

import ctypes
import math
import secrets
from collections.abc import Callable
from typing import Any

import llama_cpp

from llm_local.engine.types import SamplingParams, Token
from llm_local.llama.model import LlamaModel

MIROSTAT_M = 100
"""Tokens that Mirostat 1 estimates its slope from (the paper's value, arXiv:2007.14966)."""


class LlamaSampler:
    """One chain, over the logits of the context whose pointer it is given.

    Args:
        model: whose vocabulary is sampled.
        context: native context that holds the logits.
        params: what to build.
        prompt: its last tokens are what `repeat_penalty` and DRY have seen before the first sample.
        n_ctx: what a window of -1 means.
    """

    def __init__(
        self, model: LlamaModel, context: Any, params: SamplingParams, prompt: tuple[Token, ...], n_ctx: int
    ) -> None:
        self._context = context
        self._sample: Callable[[Any, Any, int], int] = llama_cpp.llama_sampler_sample
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        try:
            self._add_biases(model, params)
            self._add_penalties(model, params, prompt, n_ctx)
            self._add_draw(model, params)
        except BaseException:
            self.close()
            raise

    def sample(self, row: int) -> Token:
        """Choose the token after output row `row` of the last decode; the chain remembers it."""
        return self._sample(self._chain, self._context, row)

    def close(self) -> None:
        """Free the chain and its samplers."""
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None

    def _add(self, sampler: Any) -> Any:
        # A NULL in a chain ends the process at the first sample.
        if not sampler:
            raise RuntimeError("llama.cpp could not build a sampler")
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)
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
            self._add(llama_cpp.llama_sampler_init_logit_bias(model.n_vocab, len(biases), array))

    def _add_penalties(self, model: LlamaModel, params: SamplingParams, prompt: tuple[Token, ...], n_ctx: int) -> None:
        """Add `repeat_penalty` and DRY, which look back into the prompt, and OpenAI's, which do not."""
        repeat_n = n_ctx if params.repeat_last_n < 0 else min(params.repeat_last_n, n_ctx)
        if params.repeat_penalty != 1.0 and repeat_n:
            repeat = llama_cpp.llama_sampler_init_penalties(model.n_vocab, repeat_n, params.repeat_penalty, 0.0, 0.0)
            _accept(self._add(repeat), prompt[-repeat_n:])
        if params.presence_penalty or params.frequency_penalty:
            frequency, presence = params.frequency_penalty, params.presence_penalty
            self._add(llama_cpp.llama_sampler_init_penalties(model.n_vocab, n_ctx, 1.0, frequency, presence))
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
            _accept(self._add(dry), prompt[-dry_n:])

    def _add_draw(self, model: LlamaModel, params: SamplingParams) -> None:
        if params.temperature <= 0.0:
            self._add(llama_cpp.llama_sampler_init_greedy())
            return
        seed = secrets.randbits(32) if params.seed is None else params.seed % 2**32
        # 0xFFFFFFFF asks llama.cpp for a random seed, which would make that one seed not repeatable.
        seed = 0 if seed == llama_cpp.LLAMA_DEFAULT_SEED else seed
        if params.mirostat:
            self._add(llama_cpp.llama_sampler_init_temp(params.temperature))
            self._add(self._mirostat(model, params, seed))
            return
        if params.top_k > 0:
            self._add(llama_cpp.llama_sampler_init_top_k(params.top_k))
        if params.typical_p < 1.0:
            self._add(llama_cpp.llama_sampler_init_typical(params.typical_p, 1))
        if params.top_p < 1.0:
            self._add(llama_cpp.llama_sampler_init_top_p(params.top_p, 1))
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


def _accept(sampler: Any, tokens: tuple[Token, ...]) -> None:
    for token in tokens:
        llama_cpp.llama_sampler_accept(sampler, token)
