"""What a chat's request consists of: messages, the tools that they call, and which tools may be called."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from llm_local.server.body import Body

MAX_TOOLS = 128


class Part(Body):
    """A part of a message's content. Types other than text are refused by name when the prompt is built."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None
    refusal: str | None = None


Content = str | Annotated[list[Part], Field(fail_fast=True)]


class FunctionCall(Body):
    """What an assistant called."""

    name: str
    arguments: str
    parsed_arguments: Any = Field(None, description="what OpenAI's SDK keeps beside them; not looked at")


class ToolCall(Body):
    """One call in an assistant message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class FunctionDefinition(Body):
    """A function that the model may call. Its arguments are always valid against `parameters`, strict or not."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """One of `tools`."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Body):
    """The name of a function."""

    name: str


class NamedTool(Body):
    """`tool_choice` of one function, which is called for certain."""

    type: Literal["function"]
    function: NamedFunction


class AllowedToolsChoice(Body):
    """A subset of the tools."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedTools(Body):
    """`tool_choice` of a subset of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolsChoice


ToolChoice = Annotated[NamedTool | AllowedTools, Field(discriminator="type")]


class SystemMessage(Body):
    """Instructions."""

    role: Literal["system"]
    content: Content
    name: str | None = None


class DeveloperMessage(Body):
    """Instructions, by their newer name; shown to the model as a system message."""

    role: Literal["developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    """What the user said."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(Body):
    """What the model said before, in the form in which it was answered."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    annotations: list[Any] | None = None
    parsed: Any = Field(None, description="what OpenAI's SDK keeps beside the content; not looked at")
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    function_call: FunctionCall | None = Field(None, description="the deprecated form of tool_calls")

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls and self.function_call is None and self.refusal is None:
            raise ValueError("an assistant message needs 'content' or 'tool_calls'")
        return self


class ToolMessage(Body):
    """The result of a tool."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


class FunctionMessage(Body):
    """The result of a function, in the deprecated form."""

    role: Literal["function"]
    content: Content
    name: str


ChatMessage = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]
