"""The JSON of answers: usage, timings, log probabilities, and the fold of a stream into whole choices."""

from __future__ import annotations

import codecs
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from llm_local import __version__
from llm_local.engine.stream import Stream
from llm_local.engine.types import Delta, FinishReason, TokenLogprob, Usage
from llm_local.server.runtime import ServedModel


@dataclass(slots=True)
class Choice:
    """One whole answer."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason | None = None
    usage: Usage | None = None

    def add(self, delta: Delta) -> None:
        """Take a delta in."""
        self.text.append(delta.text)
        self.logprobs.extend(delta.logprobs)
        self.prompt_logprobs.extend(delta.prompt_logprobs)
        self.finish = delta.finish or self.finish
        self.usage = delta.usage or self.usage


async def fold(stream: Stream, n: int) -> list[Choice]:
    """Read a stream to its end. A non-streaming answer is this fold over the same deltas."""
    choices = [Choice() for _ in range(n)]
    async for deltas in stream:
        for delta in deltas:
            choices[delta.index].add(delta)
    return choices


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all chunks of an answer have in common."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def new(cls, prefix: str, kind: str, model: ServedModel) -> Envelope:
        """Return the envelope of a new answer."""
        return cls(f"{prefix}-{secrets.token_hex(12)}", kind, int(time.time()), model.id, fingerprint(model))

    def body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return the JSON of an answer or a chunk."""
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": choices,
            **more,
        }


def fingerprint(model: ServedModel) -> str:
    """Return a name for this build and these weights."""
    identity = f"{__version__} {model.id} {model.quantization} {model.size_bytes} {model.n_params}"
    return f"fp_{hashlib.sha256(identity.encode()).hexdigest()[:10]}"


def usage_json(usages: list[Usage], n_prompts: int = 1) -> dict[str, Any]:
    """Return `usage` of a request whose sequences are `n_prompts` prompts with as many choices each.

    A prompt counts once, with the cached tokens of the choice that computed it.
    """
    per_prompt = max(len(usages) // max(n_prompts, 1), 1)
    groups = [usages[start : start + per_prompt] for start in range(0, len(usages), per_prompt)]
    prompt = sum(group[0].prompt_tokens for group in groups)
    cached = sum(min(usage.cached_tokens for usage in group) for group in groups)
    completion = sum(usage.completion_tokens for usage in usages)
    accepted = sum(usage.predicted_accepted_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": sum(usage.predicted_tokens for usage in usages) - accepted,
        },
    }


def timings_json(usage: Usage) -> dict[str, Any]:
    """Return llama.cpp's `timings` of one sequence, with the time in the queue, the forced and the guessed tokens."""
    computed = usage.prompt_tokens - usage.cached_tokens
    generated = usage.completion_tokens
    return {
        "queue_ms": round(usage.queue_ms, 3),
        "cache_n": usage.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": round(usage.prompt_ms, 3),
        "prompt_per_token_ms": round(usage.prompt_ms / max(computed, 1), 3),
        "prompt_per_second": _rate(computed, usage.prompt_ms),
        "predicted_n": generated,
        "predicted_ms": round(usage.generation_ms, 3),
        "predicted_per_token_ms": round(usage.generation_ms / max(generated, 1), 3),
        "predicted_per_second": _rate(generated, usage.generation_ms),
        "forced_n": usage.forced_tokens,
        "grammar_ms": round(usage.constraint_ms, 3),
        "draft_n": usage.drafted_tokens,
        "draft_n_accepted": usage.accepted_tokens,
    }


def _rate(n: int, milliseconds: float) -> float:
    return round(n / milliseconds * 1e3, 3) if milliseconds > 0 else 0.0


def chat_logprobs(entries: tuple[TokenLogprob, ...] | list[TokenLogprob]) -> dict[str, Any]:
    """Return chat's `logprobs` object."""
    content = [
        {
            **_entry(entry.piece, entry.logprob or 0.0),
            "top_logprobs": [_entry(piece, logprob) for _, piece, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _entry(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(piece), "logprob": finite(logprob), "bytes": list(piece)}


class TextOffsets:
    """Where the tokens of a text begin, in characters from its start; told of them one after the other."""

    def __init__(self) -> None:
        self._next = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def skip(self, text: str) -> None:
        """A text whose tokens are not told comes before the next ones."""
        self._next += len(text)

    def of(self, piece: bytes) -> int:
        """Return where the next token begins; one that goes on with a character begins where that does."""
        begin = self._next
        self._next += len(self._decoder.decode(piece))
        return begin


def completion_logprobs(
    entries: tuple[TokenLogprob, ...] | list[TokenLogprob], offsets: TextOffsets, *, with_top: bool
) -> dict[str, Any]:
    """Return the `logprobs` object of completions."""
    return {
        "tokens": [token_text(entry.piece) for entry in entries],
        "token_logprobs": [None if entry.logprob is None else finite(entry.logprob) for entry in entries],
        "top_logprobs": [_top(entry) for entry in entries] if with_top else None,
        "text_offset": [offsets.of(entry.piece) for entry in entries],
    }


def _top(entry: TokenLogprob) -> dict[str, float] | None:
    if entry.logprob is None:
        return None
    best: dict[str, float] = {}
    for _, piece, logprob in entry.top:
        best.setdefault(token_text(piece), finite(logprob))
    best.setdefault(token_text(entry.piece), finite(entry.logprob))
    return best


def finite(logprob: float) -> float:
    """Return a log probability that JSON can hold (OpenAI's -9999.0 stands for minus infinity)."""
    return max(logprob, -9999.0)


def token_text(piece: bytes) -> str:
    """Return the text of a token; a part of a character is written as OpenAI does, `bytes:\\xd0`."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
