"""The bodies of answers, for the documentation. The routes make dictionaries, which a test holds against these."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Finish = Literal["stop", "length", "tool_calls", "function_call"]


class ErrorObject(BaseModel):
    """What was wrong, where, and what is allowed."""

    message: str
    type: str
    param: str | None = Field(description="the field, as a dotted path")
    code: str | None = Field(description="for programs to look at")


class Error(BaseModel):
    """OpenAI's envelope of an error; in a stream the last event, without `[DONE]`."""

    error: ErrorObject


class CachedTokens(BaseModel):
    """What was not computed."""

    cached_tokens: int


class PredictedTokens(BaseModel):
    """Of `prediction`."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class TokenUsage(BaseModel):
    """A prompt counts once, whatever `n` is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: PredictedTokens


class Timings(BaseModel):
    """llama.cpp's `timings` of the first choice, with times in the queue and for a grammar."""

    queue_ms: float
    cache_n: int = Field(description="prompt tokens that were cached")
    prompt_n: int = Field(description="prompt tokens that were computed")
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float
    forced_n: int = Field(description="tokens that a grammar left no choice about")
    grammar_ms: float
    draft_n: int = Field(description="tokens that were guessed")
    draft_n_accepted: int


class PromptProgress(BaseModel):
    """llama.cpp's `prompt_progress`."""

    total: int
    cache: int
    processed: int
    time_ms: float


class ScoredToken(BaseModel):
    """A token and how likely it was; a part of a character is `bytes:\\xd0`."""

    token: str
    logprob: float
    bytes: list[int] | None


class SampledToken(ScoredToken):
    """A token of the answer, with the likeliest in its place."""

    top_logprobs: list[ScoredToken]


class ChatLogprobs(BaseModel):
    """`logprobs` of a choice."""

    content: list[SampledToken]
    refusal: None


class CalledFunction(BaseModel):
    """A function and its arguments, JSON as text."""

    name: str
    arguments: str


class CalledTool(BaseModel):
    """A call in an answer."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnsweredMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[CalledTool] = Field(default=[], description="where it made some")
    function_call: CalledFunction | None = Field(default=None, description="where the request has `functions`")


class ChatChoice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AnsweredMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """An answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: TokenUsage
    timings: Timings


class FunctionPiece(BaseModel):
    """The name of a function first, then pieces of its arguments."""

    name: str | None = None
    arguments: str


class CallPiece(BaseModel):
    """A piece of the call `index`; the first has `id`, `type` and the name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionPiece


class MessagePiece(BaseModel):
    """What comes next; the first has the role, the last is empty."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallPiece] = []
    function_call: FunctionPiece | None = None


class ChunkChoice(BaseModel):
    """A piece of one of `n` answers."""

    index: int
    delta: MessagePiece
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatCompletionChunk(BaseModel):
    """`data` of an event of a stream, which ends with `data: [DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice] = Field(description="none in the last chunk, which has the usage")
    usage: TokenUsage | None = Field(default=None, description="with `stream_options.include_usage`")
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None


class CompletionLogprobs(BaseModel):
    """`logprobs` of a choice. The first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One of the answers: `n` to each prompt, in order."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None = Field(description="null in a stream until the last piece")


class Completion(BaseModel):
    """The continuations of the prompts or, in a stream, a piece of one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: TokenUsage | None = None
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None


class EmbeddedInput(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or base64 of little-endian float32")


class InputUsage(BaseModel):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[EmbeddedInput]
    model: str
    usage: InputUsage


class ModelMeta(BaseModel):
    """What llama.cpp's server tells of a model, and which routes it serves."""

    n_vocab: int
    n_embd: int
    n_params: int
    generates: bool
    embeds: bool


class ServedModelObject(BaseModel):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    context_window: int
    quantization: str | None
    size_bytes: int
    meta: ModelMeta


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ServedModelObject]


class TokenPiece(BaseModel):
    """A token, and its text or, where that is no whole character, its bytes."""

    id: int
    piece: str | list[int]


class TokenList(BaseModel):
    """The tokens of a text; with `with_pieces` also what they spell."""

    tokens: list[int] | list[TokenPiece]


class PlainText(BaseModel):
    """The text of tokens."""

    content: str


class PromptText(BaseModel):
    """What the model would read."""

    prompt: str


class Health(BaseModel):
    """Requests are taken."""

    status: Literal["ok"]


class NotReady(BaseModel):
    """Requests are not taken, and why."""

    status: str = Field(description="loading, draining, engine_dead, failed, ...")
    error: ErrorObject
