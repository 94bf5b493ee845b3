"""`POST /v1/chat/completions` and `POST /apply-template`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from llm_local.engine.stream import Stream
from llm_local.engine.types import Delta, Progress, Usage
from llm_local.errors import RequestError, UnsupportedParameter
from llm_local.server.answers import Choice, Envelope, chat_logprobs, timings_json, usage_json
from llm_local.server.body import read_body
from llm_local.server.generation import check_length, check_served, constraint_spec, generation_requests, start
from llm_local.server.requestlog import log_finished
from llm_local.server.runtime import Loaded, Runtime
from llm_local.server.schema import (
    ApplyTemplateRequest,
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    Content,
    DeveloperMessage,
    ToolCall,
    ToolMessage,
)
from llm_local.server.stream import DONE, all_deltas, event, first_deltas, json_response, sse, whole_answer


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    runtime: Runtime = request.app.state.runtime
    body = await read_body(request, ChatRequest, runtime.settings.max_body_bytes)
    loaded = runtime.ready
    envelope = Envelope.new("chatcmpl", "chat.completion", runtime.generator(body.model))
    check_served(body)
    prompt = await runtime.in_worker(_prompt, body, loaded)
    maximum = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    requests = generation_requests(
        body,
        loaded,
        runtime.settings,
        prompt,
        max_tokens=maximum,
        n=body.n,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        param="messages",
    )
    stream = await start(runtime, requests, constraint_spec(body, runtime.settings))
    if not body.stream:
        choices = await whole_answer(request, stream, body.n)
        log_finished(request, [choice.usage for choice in choices], [choice.finish for choice in choices])
        return json_response(_answer(envelope, body, choices))
    first = await first_deltas(request, stream)
    return sse(_events(request, envelope, body, first, stream), stream, runtime.settings)


async def apply_template(request: Request) -> Response:
    """Return the prompt text of a conversation."""
    runtime: Runtime = request.app.state.runtime
    body = await read_body(request, ApplyTemplateRequest, runtime.settings.max_body_bytes)
    runtime.generator(body.model)
    return json_response({"prompt": await runtime.in_worker(_render, body, runtime.ready)})


def _prompt(body: ChatRequest, loaded: Loaded) -> list[int]:
    text = _render(body, loaded)
    check_length(text, loaded.model.vocabulary, loaded.engine.window, "messages")
    return loaded.model.vocabulary.tokenize_prompt(text)


def _render(body: ChatRequest | ApplyTemplateRequest, loaded: Loaded) -> str:
    return loaded.template.render(
        [_message(message, f"messages.{index}") for index, message in enumerate(body.messages)],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        variables=body.chat_template_kwargs,
    )


def _message(message: ChatMessage, where: str) -> dict[str, Any]:
    """Return a message as templates know it: content is a string, arguments are objects, developer is system."""
    role = "system" if isinstance(message, DeveloperMessage) else message.role
    out: dict[str, Any] = {"role": role, "content": _text(message.content, f"{where}.content")}
    if message.name is not None:
        out["name"] = message.name
    if isinstance(message, AssistantMessage):
        if message.content is None and message.refusal is not None:
            out["content"] = message.refusal
        if message.reasoning_content is not None:
            out["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            calls = enumerate(message.tool_calls)
            out["tool_calls"] = [_call(call, f"{where}.tool_calls.{index}") for index, call in calls]
    if isinstance(message, ToolMessage):
        out["tool_call_id"] = message.tool_call_id
    return out


def _text(content: Content | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "refusal"):
            raise UnsupportedParameter(
                f"Content parts of type '{part.type}' are not supported: the model has no projector for them. "
                "Only 'text' parts are.",
                param=f"{where}.{index}.type",
            )
        if text is None:
            raise RequestError(f"A part of type '{part.type}' needs '{part.type}'.", param=f"{where}.{index}")
        texts.append(text)
    return "\n".join(texts)


def _call(call: ToolCall, where: str) -> dict[str, Any]:
    try:
        arguments = orjson.loads(call.function.arguments or "{}")
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The arguments are not valid JSON: {error}", param=f"{where}.function.arguments") from None
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _answer(envelope: Envelope, body: ChatRequest, choices: list[Choice]) -> dict[str, Any]:
    usages = [choice.usage for choice in choices if choice.usage is not None]
    return envelope.body(
        [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
                "logprobs": chat_logprobs(choice.logprobs) if body.logprobs else None,
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ],
        usage=usage_json(usages),
        timings=timings_json(usages[0]),
    )


async def _events(
    request: Request, envelope: Envelope, body: ChatRequest, first: Awaitable[list[Delta]], stream: Stream
) -> AsyncIterator[bytes]:
    chunks = _Chunks(envelope, body)
    for index in range(body.n):
        yield chunks.event(index, {"role": "assistant", "content": ""})
    usages: dict[int, Usage] = {}
    finishes = []
    async for deltas in all_deltas(first, stream):
        for delta in deltas:
            if delta.progress is not None:
                yield chunks.progress(delta.index, delta.progress)
            if delta.text or delta.logprobs:
                yield chunks.text(delta)
            if delta.finish is not None and delta.usage is not None:
                usages[delta.index] = delta.usage
                finishes.append(delta.finish)
                yield chunks.finish(delta)
    in_order = [usages[index] for index in sorted(usages)]
    if chunks.include_usage:
        yield event(chunks.envelope.body([], usage=usage_json(in_order), timings=timings_json(in_order[0])))
    log_finished(request, in_order, finishes)
    yield DONE


class _Chunks:
    """Makes the chunks of one streamed answer."""

    def __init__(self, envelope: Envelope, body: ChatRequest) -> None:
        self.envelope = Envelope(
            envelope.id, "chat.completion.chunk", envelope.created, envelope.model, envelope.system_fingerprint
        )
        self._logprobs = body.logprobs
        self._timings = body.timings_per_token
        self.include_usage = body.stream_options is not None and body.stream_options.include_usage
        self._usage: dict[str, Any] = {"usage": None} if self.include_usage else {}

    def event(
        self, index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None, **more: Any
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event(self.envelope.body([choice], **self._usage, **more))

    def text(self, delta: Delta) -> bytes:
        logprobs = chat_logprobs(delta.logprobs) if self._logprobs else None
        content = {"content": delta.text}
        if self._timings and delta.usage is not None:
            return self.event(delta.index, content, logprobs=logprobs, timings=timings_json(delta.usage))
        return self.event(delta.index, content, logprobs=logprobs)

    def finish(self, delta: Delta) -> bytes:
        assert delta.usage is not None
        return self.event(delta.index, {}, delta.finish, timings=timings_json(delta.usage))

    def progress(self, index: int, progress: Progress) -> bytes:
        return self.event(index, {}, prompt_progress=progress_json(progress))


def progress_json(progress: Progress) -> dict[str, Any]:
    """Return llama.cpp's `prompt_progress`."""
    return {
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": round(progress.time_ms, 3),
    }
