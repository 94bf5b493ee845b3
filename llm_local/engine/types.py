"""The values that cross the border between the event loop and the engine thread. All are immutable."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llm_local.errors import LLMLocalError

Token = int


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Names and neutral values are those of OpenAI's API and of llama.cpp.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 keeps all.
        seed: None draws a fresh one.
        repeat_penalty: divides the logits of the last `repeat_last_n` tokens, prompt included (llama.cpp).
        presence_penalty: subtracted once from the logit of a token that was sampled before (OpenAI).
        frequency_penalty: subtracted for each time that a token was sampled before (OpenAI).
        repeat_last_n: window of `repeat_penalty` in tokens; -1 is the whole context.
        dry_penalty_last_n: window of DRY in tokens; -1 is the whole context.
        logit_bias: (token, bias) pairs; minus infinity bans.
        ignore_eos: never end on an end-of-generation token.
        logprobs: None, or how many alternatives to report beside each token's own log probability.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: tuple[tuple[Token, float], ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: most tokens to sample; 0 only reads the prompt.
        stop: strings that end the answer and do not appear in it.
        deadline: `time.monotonic()` seconds after which the sequence is given up; None is never.
        priority: lower is sooner among those that wait.
        cache_prompt: False computes the prompt afresh.
        prompt_logprobs: report the log probability of every prompt token, too.
        report_progress: send a delta for each computed piece of the prompt.
        streamed: somebody reads along: steps are to be of even length.
        speculate: compute guessed tokens ahead, and forced ones together, where that is quicker. The answer is
            distributed as without, but which rows are computed together depends on measured times, and with it the
            rounding.
        lookup: whether prompt, prediction and answer are looked up for guesses.
        prediction: tokens that the answer is expected to repeat, in order.
    """

    prompt: tuple[Token, ...]
    params: SamplingParams
    max_tokens: int
    stop: tuple[str, ...] = ()
    deadline: float | None = None
    priority: int = 0
    cache_prompt: bool = True
    prompt_logprobs: bool = False
    report_progress: bool = False
    streamed: bool = True
    speculate: bool = False
    lookup: bool = True
    prediction: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural-log probability under the model (before penalties and truncation).

    Attributes:
        piece: the token's bytes.
        logprob: None for the first token of a prompt, which nothing predicts.
        top: the likeliest alternatives as (token, bytes, log probability), best first.
    """

    token: Token
    piece: bytes
    logprob: float | None
    top: tuple[tuple[Token, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one sequence cost. Times are in milliseconds.

    Attributes:
        cached_tokens: prompt tokens whose KV was there already.
        queue_ms: from submission to its first place in a batch.
        prompt_ms: from there to the first sampled token.
        generation_ms: from there to the last one.
        forced_tokens: tokens that a constraint left no choice about.
        constraint_ms: time that the constraint took.
        drafted_tokens, accepted_tokens: guessed tokens that were computed, and those of them that held.
        predicted_tokens, predicted_accepted_tokens: the share of the client's prediction in both.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_ms: float
    prompt_ms: float
    generation_ms: float
    forced_tokens: int = 0
    constraint_ms: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    predicted_tokens: int = 0
    predicted_accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the prompt is: `processed` of `total` tokens are in the KV cache, `cached` of them from before."""

    total: int
    cached: int
    processed: int
    time_ms: float


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step added to one answer.

    Attributes:
        index: which of the stream's sequences.
        finish: set in the last delta of a sequence, unless `error` is.
        usage: the costs so far.
        prompt_logprobs: with the first delta, when asked for.
    """

    index: int
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    error: LLMLocalError | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    progress: Progress | None = None

    @property
    def last(self) -> bool:
        """True when nothing of this sequence follows."""
        return self.finish is not None or self.error is not None
