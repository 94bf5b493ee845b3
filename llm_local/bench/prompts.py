"""Texts for requests, in Russian and English: questions, system prompts, long fillers, documents to be rewritten.

A text depends on the seed and on its place in the run only, so that every server gets the same one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

QUESTIONS = (
    "Расскажите о самом сложном проекте в вашей практике и о том, что вы в нём сделали лично.",
    "Как вы проверяете, что платёж не мошеннический, если данных о клиенте почти нет?",
    "Explain how you would find the slowest query of a busy database without stopping it.",
    "Опишите случай, когда вы не согласились с заказчиком. Чем всё закончилось?",
    "What would you measure first if a service became twice as slow overnight?",
    "Какие признаки в заявке на кредит насторожили бы вас в первую очередь и почему?",
    "Describe a time when you had to learn a new tool in a week. How did you go about it?",
    "Как вы объясните бизнесу, почему отчёт задерживается на два дня?",
)
ASIDES = ("Угу, продолжайте.", "Go on, please.", "Понял, а дальше?", "I see. And then?")
SYSTEM = "Ты вежливый интервьюер. Отвечай коротко и по делу."
INTERVIEWER = (
    "Ты проводишь собеседование. Отвечай только JSON с полями reply (реплика, одно-два предложения), next_node_id, "
    "scoring_update {block, delta, score} и red_flags (список строк)."
)
INTERVIEWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reply": {"type": "string"},
        "next_node_id": {"type": "string"},
        "scoring_update": {
            "type": "object",
            "properties": {
                "block": {"type": "string"},
                "delta": {"type": "integer"},
                "score": {"type": "number"},
            },
            "required": ["block", "delta", "score"],
            "additionalProperties": False,
        },
        "red_flags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
    },
    "required": ["reply", "next_node_id", "scoring_update", "red_flags"],
    "additionalProperties": False,
}

_RUSSIAN = (
    ("В январе", "К весне", "После проверки", "За квартал", "По просьбе банка", "Через неделю", "До запуска", "Осенью"),
    ("аналитик", "команда рисков", "подрядчик", "отдел продаж", "новый сотрудник", "руководитель", "группа данных"),
    ("описал", "пересчитал", "согласовал", "отклонил", "перенёс", "проверил", "упростил", "восстановил"),
    ("отчёт по заявкам", "правила скоринга", "выгрузку платежей", "план испытаний", "договор", "список требований"),
    ("и ошибок стало меньше", "но сроки сдвинулись", "поэтому спор решили быстро", "и клиент это принял"),
)
_ENGLISH = (
    ("In January", "By spring", "After the audit", "Within a quarter", "At the bank's request", "A week later"),
    ("the analyst", "the risk team", "a contractor", "the sales office", "a new colleague", "the data group"),
    ("described", "recounted", "agreed on", "rejected", "postponed", "checked", "simplified", "restored"),
    ("the claims report", "the scoring rules", "the payment export", "the test plan", "the contract", "the backlog"),
    ("and there were fewer errors", "but the dates slipped", "so the dispute was short", "and the client agreed"),
)
LANGUAGES = {"ru": _RUSSIAN, "en": _ENGLISH}


@dataclass(frozen=True, slots=True)
class Scale:
    """How many characters of our texts make a token of the model that is served."""

    russian: float = 2.9
    english: float = 4.4
    json: float = 2.4

    def characters(self, n_tokens: int, language: str) -> int:
        """Return how long a text of so many tokens is."""
        return round(n_tokens * {"ru": self.russian, "en": self.english, "json": self.json}[language])


def system(content: str) -> dict[str, str]:
    """Return a system message."""
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, str]:
    """Return a user message."""
    return {"role": "user", "content": content}


def filler(random: Random, n_characters: int, language: str) -> str:
    """Return made-up sentences of about that length; each has a number, so that none repeats another."""
    parts: list[str] = []
    length = 0
    while length < n_characters:
        words = [random.choice(column) for column in LANGUAGES[language]]
        when, who, did, what, so = words
        sentence = f"{when} {who} {did} {what} № {random.randint(100, 9999)}, {so}."
        parts.append(sentence)
        length += len(sentence) + 1
    return " ".join(parts)[:n_characters]


def document(random: Random, n_characters: int) -> tuple[str, str, str]:
    """Return a JSON document of about that length, an instruction that changes one value, and the changed document."""
    people = ["Ирина", "Олег", "Maria", "Pavel", "Светлана", "John"]
    teams = ["риски", "sales", "данные", "support"]
    rows: list[dict[str, Any]] = []
    while not rows or len(_pretty(rows)) < n_characters:
        number = len(rows) + 1
        person, team = random.choice(people), random.choice(teams)
        rows.append({"id": number, "name": person, "team": team, "score": random.randint(10, 99), "active": True})
    changed = random.randrange(len(rows))
    after = [dict(row) for row in rows]
    after[changed]["score"] = 100
    instruction = (
        f"Set score to 100 where id is {changed + 1} and repeat the whole JSON. Answer with JSON only, no comments."
    )
    return _pretty(rows), instruction, _pretty(after)


def prose(random: Random, n_characters: int, language: str) -> tuple[str, str, str]:
    """Return a text of about that length, an instruction that replaces one word in it, and the changed text."""
    old, new = ("договор", "контракт") if language == "ru" else ("contract", "agreement")
    text = filler(random, n_characters, language)
    if language == "ru":
        instruction = f"Повтори текст слово в слово, заменив слово «{old}» на «{new}». Больше ничего не пиши."
    else:
        instruction = f'Repeat the text word for word, with "{old}" replaced by "{new}". Write nothing else.'
    return text, instruction, text.replace(old, new)


def _pretty(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1)
