"""`POST /v1/chat/completions` and `POST /apply-template`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any

from fastapi import Request
from starlette.responses import Response

from llm_local.engine.stream import Stream
from llm_local.engine.types import Delta, Progress, Usage
from llm_local.server.answers import Choice, Envelope, chat_logprobs, timings_json, usage_json
from llm_local.server.body import read_body
from llm_local.server.generation import check_served, constraint_spec, generation_requests, sampling_params, start
from llm_local.server.prompt import prediction_tokens, prompt_tokens, render
from llm_local.server.requestlog import RequestRecord, record_of
from llm_local.server.runtime import Runtime
from llm_local.server.schema import ApplyTemplateRequest, ChatRequest
from llm_local.server.stream import DONE, all_deltas, event, first_deltas, json_response, sse, whole_answer
from llm_local.server.tools import ToolPlan, tool_plan


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    runtime: Runtime = request.app.state.runtime
    body = await read_body(request, ChatRequest, runtime.settings.max_body_bytes)
    loaded = runtime.ready
    envelope = Envelope.new("chatcmpl", "chat.completion", runtime.generator(body.model))
    record = record_of(request)
    record.describe(body, envelope.model)
    check_served(body)
    plan = tool_plan(body, loaded)
    spec = constraint_spec(body, runtime.settings, plan.spec if plan is not None else None)
    prompt = await runtime.in_worker(prompt_tokens, body, loaded)
    prediction = await runtime.in_worker(prediction_tokens, body, loaded) if body.prediction is not None else []
    maximum = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    requests = generation_requests(
        body,
        loaded,
        runtime.settings,
        prompt,
        sampling_params(body, runtime.settings, loaded.model.vocabulary, logprobs),
        max_tokens=maximum,
        n=body.n,
        param="messages",
        prediction=prediction,
    )
    stream = await start(runtime, requests, spec)
    record.submitted()
    if not body.stream:
        choices = await whole_answer(request, stream, body.n)
        record.finished([choice.usage for choice in choices], [choice.finish for choice in choices])
        return json_response(_answer(envelope, body, choices, plan))
    first = await first_deltas(request, stream)
    return sse(_events(record, _Chunks(envelope, body, plan), first, stream), stream, runtime.settings)


async def apply_template(request: Request) -> Response:
    """Return the prompt text of a conversation."""
    runtime: Runtime = request.app.state.runtime
    body = await read_body(request, ApplyTemplateRequest, runtime.settings.max_body_bytes)
    runtime.generator(body.model)
    return json_response({"prompt": await runtime.in_worker(render, body, runtime.ready.template)})


def _answer(envelope: Envelope, body: ChatRequest, choices: list[Choice], plan: ToolPlan | None) -> dict[str, Any]:
    usages = [choice.usage for choice in choices if choice.usage is not None]
    return envelope.body(
        [_choice(index, choice, body, plan) for index, choice in enumerate(choices)],
        usage=usage_json(usages),
        timings=timings_json(usages[0]),
    )


def _choice(index: int, choice: Choice, body: ChatRequest, plan: ToolPlan | None) -> dict[str, Any]:
    text, finish = "".join(choice.text), choice.finish
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    reason: str | None = finish
    if plan is not None:
        content, calls = plan.read(text)
        message |= {"content": content or (None if calls else ""), **plan.message_calls(calls)}
        reason = plan.finish_reason(finish, len(calls))
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(choice.logprobs) if body.logprobs else None,
        "finish_reason": reason,
    }


async def _events(
    record: RequestRecord, chunks: _Chunks, first: Awaitable[list[Delta]], stream: Stream
) -> AsyncIterator[bytes]:
    usages: dict[int, Usage] = {}
    finishes = []
    async for deltas in all_deltas(first, stream, record):
        for delta in deltas:
            for data in chunks.of_delta(delta):
                yield data
            if delta.finish is not None and delta.usage is not None:
                usages[delta.index] = delta.usage
                finishes.append(delta.finish)
                yield chunks.finish(delta)
    in_order = [usages[index] for index in sorted(usages)]
    if chunks.include_usage:
        yield event(chunks.envelope.body([], usage=usage_json(in_order), timings=timings_json(in_order[0])))
    record.finished(in_order, finishes)
    yield DONE


class _Chunks:
    """Makes the chunks of one streamed answer."""

    def __init__(self, envelope: Envelope, body: ChatRequest, plan: ToolPlan | None) -> None:
        self.envelope = Envelope(
            envelope.id, "chat.completion.chunk", envelope.created, envelope.model, envelope.system_fingerprint
        )
        self._logprobs = body.logprobs
        self._timings = body.timings_per_token
        self.include_usage = body.stream_options is not None and body.stream_options.include_usage
        self._usage: dict[str, Any] = {"usage": None} if self.include_usage else {}
        self._plan = plan
        self._parsers = [plan.parser() for _ in range(body.n)] if plan is not None else []
        self._unopened = set(range(body.n))

    def event(
        self, index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None, **more: Any
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event(self.envelope.body([choice], **self._usage, **more))

    def of_delta(self, delta: Delta) -> list[bytes]:
        """Return the chunks that a delta makes, before the first of an answer the one that opens it.

        Log probabilities go with the first chunk of text.
        """
        logprobs = chat_logprobs(delta.logprobs) if self._logprobs and delta.logprobs else None
        more: dict[str, Any] = (
            {"timings": timings_json(delta.usage)} if self._timings and delta.usage is not None else {}
        )
        if self._plan is None:
            fields = [{"content": delta.text}] if delta.text or delta.logprobs else []
        else:
            events = self._parsers[delta.index].feed(delta.text, last=delta.finish is not None)
            fields = [self._plan.chunk_fields(one) for one in events] or ([{}] if logprobs else [])
        out = []
        if delta.index in self._unopened and (fields or delta.progress is not None or delta.finish is not None):
            self._unopened.discard(delta.index)
            # As in OpenAI's streams: an answer that begins with a call has no content.
            content = None if fields and fields[0].keys() & {"tool_calls", "function_call"} else ""
            out.append(self.event(delta.index, {"role": "assistant", "content": content}))
        if delta.progress is not None:
            out.append(self.event(delta.index, {}, prompt_progress=progress_json(delta.progress)))
        for each in fields:
            out.append(self.event(delta.index, each, logprobs=logprobs, **more))
            logprobs = None
        return out

    def finish(self, delta: Delta) -> bytes:
        assert delta.usage is not None
        reason: str | None = delta.finish
        if self._plan is not None:
            reason = self._plan.finish_reason(delta.finish, self._parsers[delta.index].n_calls)
        return self.event(delta.index, {}, reason, timings=timings_json(delta.usage))


def progress_json(progress: Progress) -> dict[str, Any]:
    """Return llama.cpp's `prompt_progress`."""
    return {
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": round(progress.time_ms, 3),
    }
