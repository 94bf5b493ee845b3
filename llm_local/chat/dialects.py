"""How a model is told of tools, and how it writes calls. Any thread.

Hermes (Qwen2.5 and many others): `<tool_call>` blocks. Llama 3.1: a bare object with `parameters`. A template that
knows nothing of tools gets them in the system message, in the Hermes form, which small models follow best.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llm_local.chat.openings import CLOSE, OPEN

INSTRUCTIONS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The form of calls.

    Attributes:
        opens, closes: markup around a call.
        gap: between the markup and the object.
        arguments: the key of the arguments.
        separator: between calls.
        in_template: whether the chat template itself shows tools, calls and results.
        one_a_turn: whether the template shows only one call a turn, and refuses more.
    """

    name: str
    opens: str
    closes: str
    gap: str
    arguments: str
    separator: str
    in_template: bool
    one_a_turn: bool = False

    def prepare(
        self, messages: SequenceOf[Mapping[str, Any]], tools: SequenceOf[Mapping[str, Any]] | None
    ) -> list[dict[str, Any]]:
        """Return messages that the template can show: unchanged where it knows tools, else written out as text."""
        if self.in_template:
            return [dict(message) for message in (_one_a_turn(messages) if self.one_a_turn else messages)]
        out: list[dict[str, Any]] = []
        for message in messages:
            result = message["role"] == "tool"
            if result and out and out[-1]["role"] == "user":
                # Results of parallel calls: many templates want the roles to alternate.
                out[-1]["content"] += f"\n{_as_text(message)['content']}"
            else:
                out.append(_as_text(message))
        if tools:
            shown = INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
            if out and out[0]["role"] == "system":
                out[0] = {**out[0], "content": f"{out[0]['content']}\n\n{shown}"}
            else:
                out.insert(0, {"role": "system", "content": shown})
        return out


HERMES = Dialect("hermes", OPEN, CLOSE, "\n", "arguments", "\n", True)
LLAMA = Dialect("llama-3", "", "", "", "parameters", "; ", True, one_a_turn=True)
GENERIC = Dialect("generic", OPEN, CLOSE, "\n", "arguments", "\n", False)


@lru_cache(8)
def dialect_of(template: str) -> Dialect:
    """Return the dialect that a chat template (Jinja) was written for."""
    if "tools" not in template:
        return GENERIC
    if OPEN in template:
        return HERMES
    if '"parameters"' in template and ("ipython" in template or "python_tag" in template):
        return LLAMA
    return HERMES


def _one_a_turn(messages: SequenceOf[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Write parallel calls as calls in a row, each with its results behind it."""
    out: list[Mapping[str, Any]] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            out.append(message)
            continue
        n_results = next((at for at, other in enumerate(rest) if other["role"] != "tool"), len(rest))
        results, rest = rest[:n_results], rest[n_results:]
        for call in calls:
            out.append({**message, "tool_calls": [call]})
            out += [result for result in results if result.get("tool_call_id") == call.get("id")]
        ids = [call.get("id") for call in calls]
        out += [result for result in results if result.get("tool_call_id") not in ids]
    return out


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """Write calls and results as text."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    out = {key: value for key, value in message.items() if key != "tool_calls"}
    calls = [call["function"] for call in message.get("tool_calls") or []]
    written = [f"{OPEN}\n{json.dumps(call, ensure_ascii=False)}\n{CLOSE}" for call in calls]
    if written:
        out["content"] = "\n".join(filter(None, [out.get("content") or "", *written]))
    return out
