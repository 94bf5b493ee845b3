"""Sampler chains that run where the logits are: on the device, as a part of the model's graph (`LLM_BACKEND_SAMPLING`).

The logits of a row (600 KB with 152k tokens) need not be copied to the host then, and no sampler walks over them there:
what comes back is a token. llama.cpp keeps one chain for each slot. Setting another one makes it plan its graph anew
(3 ms for 24 layers), so that a chain stays in its slot until the next sequence there brings its own. Engine thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llama_cpp

from llm_local.engine.backend import Sampler
from llm_local.engine.types import SamplingParams, Token
from llm_local.errors import DecodeFailed, StartupError
from llm_local.llama.logs import native_log


def runs_on_device(params: SamplingParams) -> bool:
    """Tell whether llama.cpp has all of a chain for devices: no penalties, DRY, typical, XTC, Mirostat.

    Log probabilities need all logits of a row on the host.
    """
    penalties = params.repeat_penalty != 1.0 and params.repeat_last_n != 0
    penalties = penalties or bool(params.presence_penalty or params.frequency_penalty or params.dry_multiplier)
    others = params.typical_p < 1.0 or params.xtc_probability > 0.0 or params.mirostat != 0
    # Greedy chains have none of the others.
    return not penalties and (params.temperature <= 0.0 or not others) and params.logprobs is None


class DeviceSampling:
    """The chains of a context's slots.

    Args:
        context: native context, created for several outputs of a sequence.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._chains: dict[int, Any] = {}

    def put(self, slot: int, chain: Any | None) -> bool:
        """Take over a chain for a slot, or None for a slot that is sampled on the host; the former one is freed.

        Returns:
            Whether the device samples the slot.
        """
        former = self._chains.pop(slot, None)
        taken = bool(llama_cpp.llama_set_sampler(self._context, slot, chain)) and chain is not None
        if former is not None:
            llama_cpp.llama_sampler_free(former)
        if taken:
            self._chains[slot] = chain
        elif chain is not None:
            llama_cpp.llama_sampler_free(chain)
        return taken

    def chain(self, slot: int) -> Any:
        """Return the chain of a slot that the device samples."""
        return self._chains[slot]

    def token(self, row: int) -> Token:
        """Return the token that was drawn after output row `row` of the last decode.

        Raises:
            DecodeFailed: none was.
        """
        token = int(llama_cpp.llama_get_sampled_token_ith(self._context, row))
        if token == llama_cpp.LLAMA_TOKEN_NULL:
            raise DecodeFailed("The device sampled no token (LLM_BACKEND_SAMPLING).")
        return token

    def close(self) -> None:
        """Free all chains, after the context, whose graph has them."""
        for chain in self._chains.values():
            llama_cpp.llama_sampler_free(chain)
        self._chains.clear()


def check(
    device: DeviceSampling, new_sampler: Callable[[SamplingParams], Sampler], decode_row: Callable[[], object]
) -> None:
    """Sample a token with all that is left to the device, and leave no chain behind: rows are measured next.

    Args:
        device: of the context.
        new_sampler: makes a sampler of the context.
        decode_row: computes the first row of slot 0.

    Raises:
        StartupError: it cannot.
    """
    drawn = SamplingParams(top_k=40, top_p=0.9, min_p=0.05, temperature=0.8, logit_bias=((0, -1.0),))
    for params in (SamplingParams(temperature=0.0), drawn):
        sampler = new_sampler(params)
        sampler.enter(0, freely=True)
        try:
            decode_row()
            sampler.sample(0)
        except (DecodeFailed, RuntimeError) as error:
            raise StartupError(f"LLM_BACKEND_SAMPLING: {native_log.why(str(error))}. Unset it") from error
        finally:
            sampler.close()
            device.put(0, None)
