"""The Dialog Manager's call: a transcript becomes two prompts, and the model's JSON a typed reply."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_local.client.errors import UnusableReply

FIELDS: dict[str, Any] = {"temperature": 0.1, "max_tokens": 512}
"""What the call asks for unless the caller says otherwise."""


class ScoringUpdate(BaseModel):
    """How the last answer changes the score of one block."""

    model_config = ConfigDict(frozen=True)

    block: str
    delta: float
    score: float


class InterviewReply(BaseModel):
    """What the interviewer says and notes.

    Attributes:
        reply: for the candidate to hear.
        next_node_id: where the scenario goes on; None stays.
        scoring_update: None when nothing changes.
        red_flags: what was heard that should worry.
    """

    model_config = ConfigDict(frozen=True)

    reply: str = Field(min_length=1)
    next_node_id: str | None = None
    scoring_update: ScoringUpdate | None = None
    red_flags: list[str] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RoleProfile:
    """Who the interviewer is, what is scored, and what is a warning."""

    title: str
    role: str
    blocks: tuple[str, ...]
    red_flags: tuple[str, ...]


def _read_profiles() -> dict[str, RoleProfile]:
    data = tomllib.loads((files("llm_local.client") / "profiles.toml").read_text("utf-8"))
    return {
        name: RoleProfile(one["title"], one["role"], tuple(one["blocks"]), tuple(one["red_flags"]))
        for name, one in data.items()
    }


PROFILES: Mapping[str, RoleProfile] = _read_profiles()

JSON_OBJECT: dict[str, Any] = {"type": "json_object"}


def json_schema() -> dict[str, Any]:
    """Return a `response_format` that leaves the model no other choice than a whole reply, with every field."""
    schema = InterviewReply.model_json_schema()
    for each in (schema, *schema["$defs"].values()):
        each["required"] = list(each["properties"])
        each["additionalProperties"] = False
    return {"type": "json_schema", "json_schema": {"name": "interview_reply", "strict": True, "schema": schema}}


def messages(
    transcript: str | SequenceOf[Mapping[str, str]],
    context: str | Mapping[str, Any],
    role_profile: str | RoleProfile,
) -> list[dict[str, str]]:
    """Return the system and the user prompt.

    Args:
        transcript: text, or messages with `role` and `content`.
        context: text, or data about the interview, such as the current node and the nodes that may follow.
        role_profile: the name of one of PROFILES, or one of your own.

    Raises:
        ValueError: there is no such profile; the text names those that there are.
    """
    return [
        {"role": "system", "content": _system(_profile(role_profile))},
        {"role": "user", "content": f"Контекст:\n{_text(context)}\n\nСтенограмма:\n{_spoken(transcript)}"},
    ]


def parse(text: str, cut: bool = False) -> InterviewReply:
    """Return the reply in a model's text; a fence or words around the JSON do no harm.

    Args:
        cut: whether `max_tokens` ended the text, which is then the likely cause of what is wrong with it.

    Raises:
        UnusableReply: there is none; the error has the text.
    """
    start, end = text.find("{"), text.rfind("}")
    why = "was cut at max_tokens" if cut else "is not a JSON object"
    try:
        return InterviewReply.model_validate(json.loads(text[max(start, 0) : end + 1]))
    except json.JSONDecodeError as error:
        raise UnusableReply(f"the model's answer {why}: {error}", text) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the object"
        raise UnusableReply(f"the model's answer does not fit: {where}: {first['msg']}", text) from None


def _profile(profile: str | RoleProfile) -> RoleProfile:
    if isinstance(profile, RoleProfile):
        return profile
    try:
        return PROFILES[profile]
    except KeyError:
        raise ValueError(f"no role profile {profile!r}; there are {', '.join(PROFILES)}") from None


def _system(profile: RoleProfile) -> str:
    return (
        f"Ты — {profile.role}. Задавай по одному вопросу, слушай ответ, уточняй детали и не повторяйся. "
        "Отвечай по-русски, вежливо и коротко.\n"
        f"Оцениваемые блоки: {', '.join(profile.blocks)}.\n"
        f"Тревожные признаки: {'; '.join(profile.red_flags)}.\n"
        "Ответ — один объект JSON без пояснений: reply — реплика кандидату; next_node_id — узел сценария, к которому "
        "перейти, или null; scoring_update — объект с полями block (блок), delta (изменение оценки), score (новая "
        "оценка от 0 до 10) или null; red_flags — список замеченных тревожных признаков, пустой, если их нет."
    )


def _text(context: str | Mapping[str, Any]) -> str:
    return context if isinstance(context, str) else json.dumps(context, ensure_ascii=False)


def _spoken(transcript: str | SequenceOf[Mapping[str, str]]) -> str:
    if isinstance(transcript, str):
        return transcript
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in transcript)
