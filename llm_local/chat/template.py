"""Chat templates: Jinja in a sandbox, rendered the way Hugging Face's `apply_chat_template` does. Any thread.

Source of the environment's details: transformers, utils/chat_template_utils.py (trim_blocks, lstrip_blocks, loop
controls, `tojson` that keeps non-ASCII, `raise_exception`, `strftime_now`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from llm_local.chat.sandbox import Sandbox
from llm_local.errors import RequestError, StartupError

Message = Mapping[str, Any]

NAMED = {"chatml": "chatml", "qwen2": "qwen2", "llama-3": "llama-3", "gemma": "gemma"}
RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
"""What a template, or values that it cannot handle, can raise."""

OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class _Generation(jinja2.ext.Extension):
    """Accept `{% generation %}` blocks, which mark the assistant's text for training and mean nothing here."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Raised(jinja2.TemplateError):
    """What a template says with `raise_exception`."""


def _raise_exception(message: str) -> NoReturn:
    raise _Raised(message)


def _tojson(value: Any, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> Sandbox:
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.add_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja text.
        tokens: texts of special tokens, such as `bos_token`; missing ones are empty.

    Raises:
        StartupError: the source is not valid Jinja.
    """

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._tokens = {"bos_token": "", "eos_token": "", **(tokens or {})}
        self._sandbox = _environment()
        try:
            self._template = self._sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise StartupError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from error
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            # What Python says of the code that Jinja makes: too many blocks or brackets in each other.
            raise StartupError(f"the chat template cannot be compiled: {error}") from error

    @classmethod
    def load(cls, choice: str | None, embedded: str | None, tokens: Mapping[str, str]) -> ChatTemplate:
        """Return the template that was chosen: a name, a Jinja file, or the GGUF's own (ChatML where it has none).

        Raises:
            StartupError: the choice is neither a known name nor a readable file.
        """
        if choice is None:
            return cls(embedded or named_template("chatml"), tokens)
        if choice in NAMED:
            return cls(named_template(choice), tokens)
        try:
            return cls(Path(choice).read_text(encoding="utf-8"), tokens)
        except (OSError, UnicodeDecodeError) as error:
            names = ", ".join(sorted(NAMED))
            raise StartupError(
                f"chat_template is {choice!r}, which is neither one of {names} nor a readable Jinja file ({error})"
            ) from None

    def render(
        self,
        messages: SequenceOf[Message],
        *,
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt text of a conversation.

        Args:
            messages: role and content (a string), tool calls with their arguments as objects.
            tools: function definitions in OpenAI's form.
            add_generation_prompt: end with the opening of an assistant turn.
            continue_final_message: leave the last message open instead, so that the answer continues it.
            variables: more template variables (`chat_template_kwargs`).

        Raises:
            RequestError: the template refuses the conversation; the message has its own words.
        """
        reserved = OWN_VARIABLES & set(variables or {})
        if reserved:
            name = min(reserved)
            raise RequestError(f"`{name}` cannot be set here.", param=f"chat_template_kwargs.{name}")
        if continue_final_message:
            return self._render_open(messages, tools, variables)
        return self._render(messages, tools, add_generation_prompt, variables)

    def _render_open(self, messages: SequenceOf[Message], tools: Any, variables: Any) -> str:
        """Render with a mark after the last content and cut there; what the template trims is trimmed before it."""
        last = messages[-1]
        if last["role"] != "assistant" or last.get("tool_calls"):
            raise RequestError(
                "continue_final_message needs a last message of role assistant with text to continue.", param="messages"
            )
        mark = f"mark{secrets.token_hex(16)}"
        marked = [*messages[:-1], {**last, "content": last["content"] + mark}]
        text, found, _ = self._render(marked, tools, False, variables).rpartition(mark)
        if not found:
            raise RequestError("The chat template does not show the last message.", param="continue_final_message")
        return text

    def _render(self, messages: SequenceOf[Message], tools: Any, add_generation_prompt: bool, variables: Any) -> str:
        context = {
            **self._tokens,
            **(variables or {}),
            "messages": [dict(message) for message in messages],
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        self._sandbox.begin()
        try:
            return self._template.render(context)
        except _Raised as error:
            raise RequestError(f"The chat template refuses these messages: {error.message}", param="messages") from None
        except RENDER_ERRORS as error:
            raise RequestError(f"The chat template cannot render these messages: {error}", param="messages") from error


def named_template(name: str) -> str:
    """Return the source of a template that comes with the package."""
    return files("llm_local.chat").joinpath("templates", f"{NAMED[name]}.jinja").read_text(encoding="utf-8")
