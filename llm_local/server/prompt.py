"""From a conversation to the prompt: messages as chat templates know them, rendered and tokenized. Workers."""

from __future__ import annotations

from typing import Any

import orjson

from llm_local.chat.dialects import dialect_of
from llm_local.chat.template import ChatTemplate
from llm_local.errors import ContextLengthExceeded, RequestError, UnsupportedParameter
from llm_local.server.generation import check_length
from llm_local.server.message_schema import AssistantMessage, ChatMessage, Content, FunctionCall, ToolMessage
from llm_local.server.runtime import Loaded
from llm_local.server.schema import ApplyTemplateRequest, ChatRequest
from llm_local.server.tools import shown_tools


def prompt_tokens(body: ChatRequest, loaded: Loaded) -> list[int]:
    """Return the tokens of a conversation.

    Raises:
        ContextLengthExceeded: it cannot fit the window.
        RequestError: the template refuses it.
    """
    text = render(body, loaded.template)
    check_length(text, loaded.model.vocabulary, loaded.engine.window, "messages")
    return loaded.model.vocabulary.tokenize_prompt(text)


def prediction_tokens(body: ChatRequest, loaded: Loaded) -> list[int]:
    """Return the tokens of the text that the client expects.

    Raises:
        ContextLengthExceeded: no answer could be as long.
    """
    if body.prediction is None:
        return []
    text = _text(body.prediction.content, "prediction.content")
    check_length(text, loaded.model.vocabulary, loaded.engine.window, "prediction.content")
    tokens = loaded.model.vocabulary.tokenize(text, add_special=False, parse_special=False)
    if len(tokens) > loaded.engine.window:
        raise ContextLengthExceeded(len(tokens), loaded.engine.window, param="prediction.content")
    return tokens


def render(body: ChatRequest | ApplyTemplateRequest, template: ChatTemplate) -> str:
    """Return the prompt text of a conversation, with its tools where it has some.

    Raises:
        RequestError: the template refuses it, or tools or arguments of calls are nested too deep.
    """
    dialect = dialect_of(template.source)
    tools = shown_tools(body)
    messages = [_message(message, f"messages.{index}") for index, message in enumerate(body.messages)]
    try:
        prepared = dialect.prepare(messages, tools)
    except RecursionError:
        raise RequestError("The tools, or the arguments of calls, are nested too deep.", param="messages") from None
    return template.render(
        prepared,
        tools=tools if dialect.in_template else None,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        variables=body.chat_template_kwargs,
    )


def _message(message: ChatMessage, where: str) -> dict[str, Any]:
    """Return a message as templates know it: content is a string, arguments are objects, developer is system."""
    role: str = {"developer": "system", "function": "tool"}.get(message.role, message.role)
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
            out["tool_calls"] = [_call(call.id, call.function, f"{where}.tool_calls.{i}.function") for i, call in calls]
        elif message.function_call is not None:
            out["tool_calls"] = [_call("", message.function_call, f"{where}.function_call")]
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


def _call(call_id: str, function: FunctionCall, where: str) -> dict[str, Any]:
    try:
        arguments = orjson.loads(function.arguments or "{}")
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The arguments are not valid JSON: {error}", param=f"{where}.arguments") from None
    return {"id": call_id, "type": "function", "function": {"name": function.name, "arguments": arguments}}
