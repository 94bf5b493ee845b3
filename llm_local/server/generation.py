"""From the fields of a request to what the engine generates: prompts as tokens, sampling, limits, deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Any

from llm_local.config import Settings
from llm_local.engine.constraint import Constraint
from llm_local.engine.stream import Stream
from llm_local.engine.types import GenerationRequest, SamplingParams
from llm_local.errors import ContextLengthExceeded, RequestError, UnsupportedParameter
from llm_local.server.runtime import Loaded, Runtime, Vocabulary
from llm_local.server.schema import ChatRequest, SamplingFields
from llm_local.structured.spec import CallsSpec, ChoiceSpec, GbnfSpec, JsonSpec, RegexSpec, Spec

MAX_BIAS_TEXT = 256

UNSERVED = ("web_search_options", "moderation")


def check_served(body: SamplingFields) -> None:
    """Refuse fields without which the client would get a wrong answer.

    Raises:
        UnsupportedParameter: names the field.
    """
    if not isinstance(body, ChatRequest):
        return
    for name in UNSERVED:
        if getattr(body, name) is not None:
            raise UnsupportedParameter(f"'{name}' is not supported by this server.", param=name)
    if body.modalities is not None and body.modalities != ["text"]:
        raise UnsupportedParameter("'modalities' other than ['text'] are not supported.", param="modalities")


def constraint_spec(body: SamplingFields, settings: Settings, calls: CallsSpec | None = None) -> Spec | None:
    """Return what the answer must be, or None when it is free.

    Args:
        calls: what the request's tools ask for; it includes a `response_format`.

    Raises:
        RequestError: two fields say so at once, or enforcement is switched off.
    """
    given: list[tuple[str, Spec]] = []
    if body.grammar is not None:
        given.append(("grammar", GbnfSpec(body.grammar)))
    if body.guided_regex is not None:
        given.append(("guided_regex", RegexSpec(body.guided_regex)))
    if body.json_schema is not None:
        given.append(("json_schema", JsonSpec(body.json_schema, "json_schema")))
    if body.guided_choice is not None:
        given.append(("guided_choice", ChoiceSpec(tuple(body.guided_choice))))
    if isinstance(body, ChatRequest) and body.response_format is not None:
        schema = body.response_format.enforced()
        if schema is not None and calls is None:
            given.append(("response_format", schema))
    if calls is not None:
        given.append(("tools", calls))
    if len(given) > 1:
        names = " and ".join(f"'{name}'" for name, _ in given[:2])
        raise RequestError(f"{names} cannot be given together: each says what the answer must be.", param=given[1][0])
    if given and not settings.json_schema_enforce:
        raise UnsupportedParameter(
            f"'{given[0][0]}' is not served: enforcement is switched off here (LLM_JSON_SCHEMA_ENFORCE).",
            param=given[0][0],
        )
    return given[0][1] if given else None


def sampling_params(
    body: SamplingFields, settings: Settings, vocabulary: Vocabulary, logprobs: int | None
) -> SamplingParams:
    """Return how tokens are chosen. (With a seed, each further choice has the next one.)"""
    seed = None if body.seed is None or body.seed == -1 else body.seed
    return SamplingParams(
        temperature=settings.temperature if body.temperature is None else body.temperature,
        top_p=settings.top_p if body.top_p is None else body.top_p,
        top_k=max(settings.top_k if body.top_k is None else body.top_k, 0),
        min_p=settings.min_p if body.min_p is None else body.min_p,
        typical_p=body.typical_p,
        seed=seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repeat_penalty=settings.repeat_penalty if body.repeat_penalty is None else body.repeat_penalty,
        repeat_last_n=body.repeat_last_n,
        dry_multiplier=body.dry_multiplier,
        dry_base=body.dry_base,
        dry_allowed_length=body.dry_allowed_length,
        dry_penalty_last_n=body.dry_penalty_last_n,
        dry_sequence_breakers=tuple(body.dry_sequence_breakers),
        xtc_probability=body.xtc_probability,
        xtc_threshold=body.xtc_threshold,
        mirostat=body.mirostat,
        mirostat_tau=body.mirostat_tau,
        mirostat_eta=body.mirostat_eta,
        logit_bias=_logit_bias(body.logit_bias, vocabulary),
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
    )


def generation_requests(
    body: SamplingFields,
    loaded: Loaded,
    settings: Settings,
    prompt: SequenceOf[int],
    params: SamplingParams,
    *,
    max_tokens: int | None,
    n: int,
    param: str,
    prompt_logprobs: bool = False,
    prediction: SequenceOf[int] = (),
) -> list[GenerationRequest]:
    """Return one engine request for each of `n` choices of one prompt.

    Raises:
        ContextLengthExceeded: the prompt leaves no room in the window.
        RequestError: the prompt is empty, or more choices are wanted than run together.
    """
    window = loaded.engine.window
    if not prompt:
        raise RequestError("The prompt is empty.", param=param)
    wanted = settings.n_predict if max_tokens is None else max_tokens
    if len(prompt) >= window and (wanted or len(prompt) > window):
        raise ContextLengthExceeded(len(prompt), window, param=param)
    if n > loaded.engine.max_running:
        raise RequestError(
            f"At most {loaded.engine.max_running} choices can be generated together (LLM_PARALLEL), not {n}.",
            param="n" if n == body.n else "best_of",
        )
    timeout = min(body.timeout or settings.request_timeout, settings.request_timeout)
    deadline = time.monotonic() + timeout
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return [
        GenerationRequest(
            prompt=tuple(prompt),
            params=params if params.seed is None else replace(params, seed=params.seed + choice),
            max_tokens=min(wanted, window - len(prompt)),
            stop=stop,
            deadline=deadline,
            priority=body.priority,
            cache_prompt=body.cache_prompt,
            prompt_logprobs=prompt_logprobs,
            report_progress=body.return_progress and body.stream,
            streamed=body.stream,
            # A seed asks for the same answer again, as far as that can be: which rows are computed together, and so the
            # rounding, must not depend on measured times.
            speculate=body.seed is None or bool(prediction),
            lookup=settings.prompt_lookup or bool(prediction),
            prediction=tuple(prediction),
        )
        for choice in range(n)
    ]


async def start(runtime: Runtime, requests: list[GenerationRequest], spec: Spec | None) -> Stream:
    """Submit the sequences of one request, once their samplers and constraints are built on a worker.

    Raises:
        InvalidSchema, InvalidGrammar: what the answer must be cannot be enforced.
        QueueFull, EngineDead, Draining: nothing is taken now.
    """
    loaded = runtime.ready
    loaded.engine.check_room(requests)
    constraints: list[Constraint] = []
    if spec is not None:
        with runtime.metrics.grammar_build.time():
            constraints = await loaded.grammars.prepare(spec, [one.max_tokens for one in requests])
    samplers = await runtime.in_worker(loaded.engine.new_samplers, requests)
    return loaded.engine.submit(requests, samplers, constraints)


def check_length(text: str, vocabulary: Vocabulary, window: int, param: str, *, embeds: bool = False) -> None:
    """Refuse a text that cannot fit the window before time is spent on tokenizing it.

    Raises:
        ContextLengthExceeded: it has at least so many tokens.
    """
    least = vocabulary.least_tokens(text)
    if least > window:
        raise ContextLengthExceeded(least, window, param=param, at_least=True, embeds=embeds)


def check_tokens(tokens: SequenceOf[int], vocabulary: Vocabulary, param: str) -> None:
    """Refuse token ids that the vocabulary does not have.

    Raises:
        RequestError: names the first of them.
    """
    for position, token in enumerate(tokens):
        if token >= vocabulary.n_vocab:
            raise RequestError(_not_in_vocabulary(token, vocabulary), param=f"{param}.{position}")


def _not_in_vocabulary(token: int, vocabulary: Vocabulary) -> str:
    return f"Token {token} is not in the vocabulary (0 to {vocabulary.n_vocab - 1})."


def _logit_bias(biases: dict[str, Any], vocabulary: Vocabulary) -> tuple[tuple[int, float], ...]:
    out: dict[int, float] = {}
    for key, bias in biases.items():
        value = -math.inf if bias is False else float(bias)
        if len(key) > MAX_BIAS_TEXT:
            raise RequestError(f"A key of 'logit_bias' has over {MAX_BIAS_TEXT} characters.", param="logit_bias")
        if key.isascii() and key.isdigit():
            if int(key) >= vocabulary.n_vocab:
                raise RequestError(_not_in_vocabulary(int(key), vocabulary), param=f"logit_bias.{key}")
            out[int(key)] = value
        else:
            tokens = vocabulary.tokenize(key, add_special=False, parse_special=True)
            out.update(dict.fromkeys(tokens, value))
    return tuple(out.items())
