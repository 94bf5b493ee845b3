"""`POST /v1/completions`: text in, text out, also in batches, echoed, scored, or filled in the middle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.responses import Response

from llm_local.engine.stream import Stream
from llm_local.engine.types import Delta, TokenLogprob, Usage
from llm_local.errors import ContextLengthExceeded, RequestError
from llm_local.server.answers import Choice, Envelope, TextOffsets, completion_logprobs, timings_json, usage_json
from llm_local.server.body import read_body
from llm_local.server.chat import progress_json
from llm_local.server.generation import (
    check_length,
    check_served,
    check_tokens,
    constraint_spec,
    generation_requests,
    sampling_params,
    start,
)
from llm_local.server.requestlog import RequestRecord, record_of
from llm_local.server.runtime import Runtime, Vocabulary
from llm_local.server.schema import CompletionRequest
from llm_local.server.stream import DONE, all_deltas, event, first_deltas, json_response, sse, whole_answer

FILL_IN = {"fim_pre", "fim_suf", "fim_mid"}
"""Special tokens that a model needs to write what stands between two texts."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    text: str
    tokens: list[int]


async def completions(request: Request) -> Response:
    """Continue one or several prompts."""
    runtime: Runtime = request.app.state.runtime
    body = await read_body(request, CompletionRequest, runtime.settings.max_body_bytes)
    loaded = runtime.ready
    envelope = Envelope.new("cmpl", "text_completion", runtime.generator(body.model))
    record = record_of(request)
    record.describe(body, envelope.model)
    check_served(body)
    best_of = _check_best_of(body)
    n_prompts = len(body.prompt) if isinstance(body.prompt, list) and not _is_tokens(body.prompt) else 1
    if n_prompts * best_of > loaded.engine.capacity:
        raise RequestError(
            f"{n_prompts * best_of} completions were asked for; at most {loaded.engine.capacity} can run or wait.",
            param="prompt",
        )
    prompts = await runtime.in_worker(_prompts, body, loaded.model.vocabulary, loaded.engine.window)
    logprobs = body.logprobs if body.logprobs is not None else (0 if best_of > body.n else None)
    params = sampling_params(body, runtime.settings, loaded.model.vocabulary, logprobs)
    requests = [
        one
        for prompt in prompts
        for one in generation_requests(
            body,
            loaded,
            runtime.settings,
            prompt.tokens,
            params,
            max_tokens=body.max_tokens,
            n=best_of,
            param="prompt",
            prompt_logprobs=body.echo and body.logprobs is not None,
        )
    ]
    stream = await start(runtime, requests, constraint_spec(body, runtime.settings))
    record.submitted()
    if not body.stream:
        choices = await whole_answer(request, stream, len(requests))
        record.finished([choice.usage for choice in choices], [choice.finish for choice in choices], len(prompts))
        return json_response(_answer(envelope, body, prompts, choices, best_of))
    first = await first_deltas(request, stream)
    return sse(_events(record, envelope, body, prompts, first, stream), stream, runtime.settings)


def _check_best_of(body: CompletionRequest) -> int:
    best_of = body.best_of or body.n
    if best_of < body.n:
        raise RequestError(f"'best_of' ({best_of}) must be at least 'n' ({body.n}).", param="best_of")
    if best_of > body.n and body.stream:
        raise RequestError("'best_of' above 'n' cannot be streamed.", param="best_of")
    return best_of


def _prompts(body: CompletionRequest, vocabulary: Vocabulary, window: int) -> list[_Prompt]:
    given: Any = body.prompt
    if not isinstance(given, list) or _is_tokens(given):
        given = [given]
    if not given:
        raise RequestError("'prompt' is empty.", param="prompt")
    for text in (*given, body.suffix):
        if isinstance(text, str):
            check_length(text, vocabulary, window, "prompt")
        elif isinstance(text, list) and len(text) > window:
            raise ContextLengthExceeded(len(text), window, param="prompt")
    # Where nothing can be filled in, an empty suffix is how some clients say that there is none.
    if body.suffix or (body.suffix is not None and set(vocabulary.special) >= FILL_IN):
        return [_fill_in(one, body.suffix, vocabulary) for one in given]
    names = ["prompt"] if len(given) == 1 else [f"prompt.{number}" for number in range(len(given))]
    return [_prompt(one, vocabulary, name, body.echo) for one, name in zip(given, names, strict=True)]


def _is_tokens(prompt: list[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


def _prompt(given: str | list[int], vocabulary: Vocabulary, param: str, echo: bool) -> _Prompt:
    if isinstance(given, str):
        return _Prompt(given, vocabulary.tokenize_prompt(given))
    check_tokens(given, vocabulary, param)
    return _Prompt(vocabulary.detokenize(given) if echo else "", given)


def _fill_in(prefix: str | list[int], suffix: str, vocabulary: Vocabulary) -> _Prompt:
    """Return the prompt that asks for what stands between prefix and suffix."""
    special = vocabulary.special
    if not set(special) >= FILL_IN:
        raise RequestError("This model cannot fill in the middle: its vocabulary has no tokens for it.", param="suffix")
    if not isinstance(prefix, str):
        raise RequestError("'suffix' needs a prompt of text, not of tokens.", param="prompt")
    before = vocabulary.tokenize(prefix, add_special=False, parse_special=False)
    after = vocabulary.tokenize(suffix, add_special=False, parse_special=False)
    bos = [special["bos"]] if vocabulary.adds_bos else []
    return _Prompt(prefix, [*bos, special["fim_pre"], *before, special["fim_suf"], *after, special["fim_mid"]])


def _answer(
    envelope: Envelope, body: CompletionRequest, prompts: list[_Prompt], choices: list[Choice], best_of: int
) -> dict[str, Any]:
    usages = [choice.usage for choice in choices if choice.usage is not None]
    out = []
    for number, prompt in enumerate(prompts):
        group = choices[number * best_of : (number + 1) * best_of]
        if best_of > body.n:
            group = sorted(group, key=_mean_logprob, reverse=True)[: body.n]
        out += [_choice(number * body.n + index, body, prompt, choice) for index, choice in enumerate(group)]
    return envelope.body(out, usage=usage_json(usages, len(prompts)), timings=timings_json(usages[0]))


def _mean_logprob(choice: Choice) -> float:
    known = [entry.logprob for entry in choice.logprobs if entry.logprob is not None]
    return sum(known) / len(known) if known else float("-inf")


def _choice(index: int, body: CompletionRequest, prompt: _Prompt, choice: Choice) -> dict[str, Any]:
    echoed = prompt.text if body.echo else ""
    entries = [*choice.prompt_logprobs, *choice.logprobs]
    offsets = TextOffsets()
    offsets.skip("" if choice.prompt_logprobs else echoed)
    return {
        "index": index,
        "text": echoed + "".join(choice.text),
        "logprobs": _logprobs(body, entries, offsets),
        "finish_reason": choice.finish,
    }


def _logprobs(
    body: CompletionRequest, entries: list[TokenLogprob] | tuple[TokenLogprob, ...], offsets: TextOffsets
) -> dict[str, Any] | None:
    if body.logprobs is None:
        return None
    return completion_logprobs(entries, offsets, with_top=body.logprobs > 0)


async def _events(
    record: RequestRecord,
    envelope: Envelope,
    body: CompletionRequest,
    prompts: list[_Prompt],
    first: Awaitable[list[Delta]],
    stream: Stream,
) -> AsyncIterator[bytes]:
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    common: dict[str, Any] = {"usage": None} if include_usage else {}
    n_sequences = len(prompts) * body.n
    # By the tokens that were scored: a text may be held back, and then comes without them or with those of others.
    offsets = [TextOffsets() for _ in range(n_sequences)]
    to_echo = {index: prompts[index // body.n].text for index in range(n_sequences)} if body.echo else {}
    usages: dict[int, Usage] = {}
    finishes = []
    async for deltas in all_deltas(first, stream, record):
        for delta in deltas:
            if delta.progress is not None:
                choice = {"index": delta.index, "text": "", "logprobs": None, "finish_reason": None}
                yield event(envelope.body([choice], prompt_progress=progress_json(delta.progress), **common))
            if not (delta.text or delta.logprobs or delta.last):
                continue
            echoed = to_echo.pop(delta.index, "")
            text = echoed + delta.text
            entries = (*delta.prompt_logprobs, *delta.logprobs)
            offsets[delta.index].skip("" if delta.prompt_logprobs else echoed)
            choice = {
                "index": delta.index,
                "text": text,
                "logprobs": _logprobs(body, entries, offsets[delta.index]),
                "finish_reason": delta.finish,
            }
            more = dict(common)
            if delta.usage is not None and (delta.finish is not None or body.timings_per_token):
                more["timings"] = timings_json(delta.usage)
            if delta.finish is not None and delta.usage is not None:
                usages[delta.index] = delta.usage
                finishes.append(delta.finish)
            yield event(envelope.body([choice], **more))
    in_order = [usages[index] for index in sorted(usages)]
    if include_usage:
        yield event(envelope.body([], usage=usage_json(in_order, len(prompts)), timings=timings_json(in_order[0])))
    record.finished(in_order, finishes, len(prompts))
    yield DONE
