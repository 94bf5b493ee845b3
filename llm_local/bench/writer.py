"""Writing request bodies: the same words for every server, new ones in every round, as long as was asked for."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from llm_local.bench import prompts
from llm_local.bench.client import Request
from llm_local.bench.options import Options
from llm_local.bench.prompts import Scale

STANDARD = ("response_format", "prediction")
"""Optional fields that are OpenAI's own."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run a session is; with the options it decides every word that is sent."""

    workload: str
    server: str
    load: str
    round: int
    client: int
    turn: int


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes request bodies as the options want them."""

    options: Options
    scale: Scale
    models: Mapping[str, str | None]
    """By server: what is asked for when the options name no model."""
    embedding_models: Mapping[str, str | None]

    def tag(self, place: Place, *, of: str = "session") -> str:
        """Return digits that no other session, round ('round'), or server, workload and load ('server') shares.

        Always as many digits, so that they make the same number of tokens everywhere.
        """
        parts = [self.options.nonce, place.server, place.workload, place.load]
        if of != "server":
            parts.append(str(place.round))
        if of == "session":
            parts += [str(place.client), str(place.turn)]
        return f"{zlib.crc32(' '.join(parts).encode()) % 10**9:09d}"

    def random(self, place: Place, what: str = "") -> Random:
        """Return a generator that is the same for every server."""
        return Random(
            f"{self.options.seed} {place.workload} {place.load} {place.round} {place.client} {place.turn} {what}"
        )

    def text(self, place: Place, n_tokens: int, language: str, what: str = "") -> str:
        """Return made-up sentences of about so many tokens."""
        return prompts.filler(self.random(place, what), self.scale.characters(n_tokens, language), language)

    def n_answer(self, place: Place) -> int:
        """Return how long an answer should be: 3/4 to 5/4 of --max-tokens.

        Lengths differ, so that clients do not move in lock-step: prompts arrive while answers run.
        """
        middle = self.options.max_tokens
        return middle - middle // 4 + (place.client * 37 + place.turn * 53 + place.round * 17) % (middle // 2 + 1)

    def chat(
        self, place: Place, messages: list[dict[str, str]], *, n: int | None = None, group: str = "", **fields: Any
    ) -> Request:
        """Return a streamed chat request whose answer has exactly `n` tokens, where the server can be told so."""
        options = self.options
        temperature = fields.pop("temperature", options.temperature)
        body: dict[str, Any] = {
            "messages": messages,
            "max_tokens": n or self.n_answer(place),
            "temperature": 0.7 if temperature is None else temperature,
            "top_p": 0.9,
            "seed": place.client + 1,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        check = fields.pop("check", None)
        if options.plain_openai:
            body["max_completion_tokens"] = body.pop("max_tokens")
            fields = {name: value for name, value in fields.items() if name in STANDARD}
        else:
            # llama-server has a `min_p` of its own where a request is silent.
            body |= {"top_k": 40, "min_p": 0.0, "ignore_eos": True}
        return Request(self.finish(place, body | fields), group=group, check=check)

    def finish(self, place: Place, body: dict[str, Any], *, embeds: bool = False) -> dict[str, Any]:
        """Add the model and the fields of --extra; those that are None go."""
        listed = self.embedding_models if embeds else self.models
        body = {"model": self.options.model or listed.get(place.server)} | body
        body |= dict(self.options.extra.get("", {})) | dict(self.options.extra.get(place.server, {}))
        return {name: value for name, value in body.items() if value is not None}
