"""The bodies of requests: OpenAI's fields, llama.cpp's extensions, and for each what values are allowed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from llm_local.server.body import Body
from llm_local.server.message_schema import (
    MAX_TOOLS,
    ChatMessage,
    Content,
    FunctionDefinition,
    NamedFunction,
    Tool,
    ToolChoice,
)
from llm_local.structured.spec import JsonSpec

Probability = Annotated[float, Field(ge=0, le=1)]
TokenId = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]

Tokens = Annotated[list[TokenId], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Inputs = str | Tokens | Texts | Annotated[list[Tokens], Field(fail_fast=True)]


def _only_false(value: bool) -> bool:
    if value:
        raise ValueError("must be a number, or false, which bans")
    return value


# No `Literal[False]`, which takes 0 for the same.
Ban = Annotated[bool, AfterValidator(_only_false), WithJsonSchema({"const": False})]

MAX_BREAKER_BYTES = 40
"""llama.cpp cuts longer ones."""


def _breaker(value: str) -> str:
    if "\0" in value or len(value.encode()) > MAX_BREAKER_BYTES:
        raise ValueError(f"must have at most {MAX_BREAKER_BYTES} bytes, none of them 0")
    return value


Breaker = Annotated[str, Field(min_length=1, max_length=MAX_BREAKER_BYTES), AfterValidator(_breaker)]
MAX_STOPS = 16
INT64 = 2**63


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = Field(False, description="send a last chunk with the usage")
    include_obfuscation: bool = Field(False, description="accepted; nothing is obfuscated")


class SamplingFields(Body):
    """The fields that chat and completions share."""

    model: str | None = Field(None, description="the served id or an alias; see GET /v1/models")
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(None, description="0 or -1 keeps all")
    min_p: Probability | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=128)] = 1
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = Field(None, description="-1 draws a fresh one")
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, lt=2**31)] = Field(64, description="-1 is the whole context")
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] = 0.0
    dry_base: Annotated[float, Field(ge=1, le=100)] = 1.75
    dry_allowed_length: Annotated[int, Field(ge=0, lt=2**31)] = 2
    dry_penalty_last_n: Annotated[int, Field(ge=-1, lt=2**31)] = Field(-1, description="-1 is the whole context")
    dry_sequence_breakers: Annotated[list[Breaker], Field(max_length=16)] = Field(default=["\n", ":", '"', "*"])
    xtc_probability: Probability = 0.0
    xtc_threshold: Probability = 0.1
    mirostat: Annotated[int, Field(ge=0, le=2)] = 0
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] = 5.0
    mirostat_eta: Annotated[float, Field(ge=0, le=1)] = 0.1
    logit_bias: dict[str, Ban | Annotated[float, Field(ge=-100, le=100)]] = Field(
        default={}, description="token id, or text that is tokenized, to a bias; false bans"
    )
    ignore_eos: bool = False
    cache_prompt: bool = True
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = Field(0, description="lower is sooner")
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = Field(None, description="seconds to the deadline")
    timings_per_token: bool = False
    return_progress: bool = False
    user: str | None = None
    grammar: Text | None = Field(None, description="GBNF, llama.cpp's grammar language, that the answer must match")
    guided_regex: Text | None = Field(None, description="regular expression that the whole answer must match")
    guided_choice: Texts | None = Field(None, description="texts of which the answer must be one")
    json_schema: dict[str, Any] | None = Field(None, description="of the answer, as in llama.cpp; see response_format")

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only allowed when 'stream' is true")
        return self


class JsonSchemaFormat(Body):
    """`response_format.json_schema`. Every schema is enforced, whether `strict` says so or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] | None = Field(None, description="shown to nobody")
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="of a json_object, as in llama.cpp")

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("a response_format of type 'json_schema' needs 'json_schema'")
        if self.type != "json_schema" and self.json_schema is not None:
            raise ValueError(f"'json_schema' is not allowed when 'type' is '{self.type}'")
        if self.type != "json_object" and self.schema_ is not None:
            raise ValueError(f"'schema' is not allowed when 'type' is '{self.type}', only when it is 'json_object'")
        return self

    def enforced(self) -> JsonSpec | None:
        """Return what the answer must be, or None for plain text."""
        if self.type == "text":
            return None
        if self.json_schema is not None:
            schema = {} if self.json_schema.schema_ is None else self.json_schema.schema_
            return JsonSpec(schema)
        return JsonSpec({"type": "object"} if self.schema_ is None else self.schema_, "response_format.schema")


class Prediction(Body):
    """`prediction`: what the client expects to be answered, in whole or in part."""

    type: Literal["content"]
    content: Content


class ChatRequest(SamplingFields):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    prediction: Prediction | None = Field(None, description="text that the answer may repeat, which makes it faster")
    modalities: Texts | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: Any = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @model_validator(mode="after")
    def _logprobs_are_asked_for(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' is only allowed when 'logprobs' is true")
        return self


class CompletionRequest(SamplingFields):
    """`POST /v1/completions`."""

    prompt: Inputs
    suffix: str | None = Field(None, description="fill in the middle, where the vocabulary has the tokens for it")
    echo: bool = False
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None


class EmbeddingRequest(Body):
    """`POST /v1/embeddings`."""

    input: Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class TokenizeRequest(Body):
    """`POST /tokenize`, as llama.cpp's server."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(Body):
    """`POST /detokenize`, as llama.cpp's server."""

    tokens: Tokens


class ApplyTemplateRequest(Body):
    """`POST /apply-template`, as llama.cpp's server."""

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
