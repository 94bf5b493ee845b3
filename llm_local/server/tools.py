"""Tools of a request: what the model is shown, what its answer may be, and its calls in OpenAI's form. Event loop."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from llm_local.chat.calls import CallArguments, CallBegins, Content, Event, ReplyParser
from llm_local.chat.dialects import dialect_of
from llm_local.chat.openings import Openings
from llm_local.engine.types import FinishReason
from llm_local.errors import RequestError
from llm_local.server.message_schema import AllowedTools, FunctionDefinition, NamedFunction, NamedTool
from llm_local.server.runtime import Loaded
from llm_local.server.schema import ApplyTemplateRequest, ChatRequest
from llm_local.structured.spec import CallFormat, CallsSpec

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """How the calls of one request are made and read.

    Attributes:
        spec: what the answer must be.
        names: of the functions that may be called.
        certain: whether the answer is calls from its first character on.
        legacy: whether the client speaks of `functions`.
    """

    spec: CallsSpec
    names: tuple[str, ...]
    certain: bool
    legacy: bool

    def parser(self) -> ReplyParser:
        """Return a parser for one answer."""
        # (JSON beside calls is compact: it has no space behind the colon.)
        mark = (self.spec.form.opens or '{"name": ') if self.spec.content is not None else ""
        return ReplyParser(Openings(self.names), self.names, self.certain, mark)

    def read(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Return the content and the calls of a whole answer."""
        content: list[str] = []
        calls: list[dict[str, Any]] = []
        for event in self.parser().feed(text, last=True):
            match event:
                case Content(piece):
                    content.append(piece)
                case CallBegins(_, name):
                    function = {"name": name, "arguments": ""}
                    calls.append({"id": _new_id(), "type": "function", "function": function})
                case CallArguments(index, piece):
                    calls[index]["function"]["arguments"] += piece
        return "".join(content), calls

    def message_calls(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the fields of a message that hold its calls."""
        if not calls:
            return {}
        return {"function_call": calls[0]["function"]} if self.legacy else {"tool_calls": calls}

    def chunk_fields(self, event: Event) -> dict[str, Any]:
        """Return the delta of one chunk: the id and the name of a call first, then pieces of its arguments."""
        match event:
            case Content(text):
                return {"content": text}
            case CallBegins(index, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": _new_id(), "type": "function", "function": function}
            case CallArguments(index, text):
                function = {"arguments": text}
                call = {"index": index, "function": function}
        return {"function_call": function} if self.legacy else {"tool_calls": [call]}

    def finish_reason(self, finish: FinishReason | None, n_calls: int) -> str | None:
        """Return OpenAI's reason: an answer that made calls ends with them."""
        if finish is not FinishReason.STOP or not n_calls:
            return finish
        return "function_call" if self.legacy else "tool_calls"


def _arguments(parameters: dict[str, Any] | None, where: str) -> dict[str, Any]:
    """Return the schema of a function's arguments, which are an object.

    Raises:
        RequestError: they are said to be something else.
    """
    if parameters is None:
        return NO_ARGUMENTS
    if parameters.get("type", "object") not in ("object", ["object"]):
        raise RequestError("The parameters of a function must be of the type 'object'.", param=where)
    return {**parameters, "type": "object"}


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def shown_tools(body: ChatRequest | ApplyTemplateRequest) -> list[dict[str, Any]] | None:
    """Return the tools that the prompt shows, in OpenAI's form; none when none may be called."""
    functions = _functions(body)
    if not functions or (isinstance(body, ChatRequest) and _choice(body) == "none"):
        return None
    return [
        {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict"})}
        for function, _ in functions
    ]


def tool_plan(body: ChatRequest, loaded: Loaded) -> ToolPlan | None:
    """Return how calls are made, or None where none may be.

    Raises:
        RequestError: a choice without tools, of a tool that is not there, or two tools of one name.
    """
    functions = _functions(body)
    choice = _choice(body)
    legacy = bool(body.functions) and not body.tools
    field = "function_call" if legacy or body.function_call is not None else "tool_choice"
    if not functions:
        if choice not in (None, "none", "auto"):
            raise RequestError(f"'{field}' needs 'tools' to choose from.", param=field)
        return None
    names = [function.name for function, _ in functions]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise RequestError(f"Two tools are named '{name}'.", param=functions[at][1])
    if choice == "none":
        return None
    allowed, certain = _allowed(choice, names, field)
    chosen = [(function, where) for function, where in functions if function.name in allowed]
    dialect = dialect_of(loaded.template.source)
    openings = Openings([function.name for function, _ in chosen])

    def find(text: str, at_start: bool) -> tuple[str | None, int]:
        found, decided = openings.find(text, at_start=at_start)
        return (None, decided) if found is None else (found.name or "", found.end)

    tools = tuple((f.name, _arguments(f.parameters, where), where) for f, where in chosen)
    content = body.response_format.enforced() if body.response_format is not None and not certain else None
    spec = CallsSpec(
        tools,
        CallFormat(dialect.opens, dialect.closes, dialect.gap, dialect.arguments, dialect.separator),
        parallel=body.parallel_tool_calls is not False and not legacy and not isinstance(choice, NamedTool),
        find=None if certain else find,
        content=content,
    )
    return ToolPlan(spec, tuple(function.name for function, _ in chosen), certain, legacy)


def _functions(body: ChatRequest | ApplyTemplateRequest) -> list[tuple[FunctionDefinition, str]]:
    """Return the functions with their places in the request."""
    if body.tools:
        return [(tool.function, f"tools.{index}.function.parameters") for index, tool in enumerate(body.tools)]
    functions = body.functions if isinstance(body, ChatRequest) else None
    return [(function, f"functions.{index}.parameters") for index, function in enumerate(functions or [])]


def _choice(body: ChatRequest) -> str | NamedTool | AllowedTools | None:
    if isinstance(body.function_call, NamedFunction):
        return NamedTool(type="function", function=body.function_call)
    return body.tool_choice if body.tool_choice is not None else body.function_call


def _allowed(choice: str | NamedTool | AllowedTools | None, names: list[str], field: str) -> tuple[list[str], bool]:
    """Return which functions may be called, and whether one must be."""
    if isinstance(choice, NamedTool):
        wanted, certain = [choice.function.name], True
    elif isinstance(choice, AllowedTools):
        wanted = [tool.function.name for tool in choice.allowed_tools.tools]
        certain = choice.allowed_tools.mode == "required"
    else:
        wanted, certain = names, choice == "required"
    for name in wanted:
        if name not in names:
            listed = ", ".join(f"'{known}'" for known in names)
            raise RequestError(f"There is no tool named '{name}'; there are {listed}.", param=field)
    return wanted, certain
