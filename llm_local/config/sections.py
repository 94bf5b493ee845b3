"""Sections: the options themselves, each written once with its type, default and meaning.

A new option is a line in one of them; its names, its place in the documentation and its flag follow from it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _at_home(path: Path) -> Path:
    return Path(os.path.expanduser(path))


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise ValueError(f"{origin!r} is no origin: write https://host, with :port where it is not the usual one")
    return origins


T = TypeVar("T")
OrUnset = Annotated[T | None, BeforeValidator(_empty_is_none)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Count = Annotated[int, Field(ge=1)]


def _words(annotation: Any) -> list[str]:
    """Return the words that a field takes, such as `auto`; of a field that takes any text, none."""
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    return [word for part in get_args(annotation) for word in _words(part)]


class Section(BaseModel):
    """Settings that belong together.

    Attributes:
        title: heading in the documentation.
        without_upstream: whether they mean something only where this process computes.
    """

    # Deferred, because values are checked by `Settings` alone: a section needs no validator of its own.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)

    title: ClassVar[str]
    without_upstream: ClassVar[bool] = True

    @field_validator("*", mode="before")
    @classmethod
    def _words_have_no_case(cls, value: object, info: ValidationInfo) -> object:
        lower = value.lower() if isinstance(value, str) else value
        return lower if lower in _words(cls.model_fields[str(info.field_name)].annotation) else value


class Model(Section):
    """What is served."""

    title = "Model"
    without_upstream = False

    engine: Literal["llama.cpp", "openai_compatible"] = Field(
        "llama.cpp", description="what computes: llama.cpp, in this process; or an OpenAI server at upstream_url"
    )
    model: str = Field(
        "smollm2-135m",
        description="a path, a file in models_dir, a name of `llm-local models`, REPO:FILE of the hub, or an address",
    )
    model_id: OrUnset[str] = Field(None, description="name in the API; unset: the file's name without quantization")
    model_aliases: Names = Field((), description="more names that requests may use, by commas; * accepts any")


class Upstream(Section):
    """Where requests go with `engine = "openai_compatible"`."""

    title = "Upstream"
    without_upstream = False

    upstream_url: OrUnset[str] = Field(
        None,
        description="address of the OpenAI server that answers, such as http://llm-vllm:8000/v1; "
        "unset: OPENAI_BASE_URL",
    )
    upstream_api_key: OrUnset[str] = Field(
        None, description="key that the upstream asks for; unset: OPENAI_API_KEY", repr=False
    )
    upstream_model: OrUnset[str] = Field(
        None, description="name of the model there, sent in place of ours; unset: names go as they come"
    )

    @field_validator("upstream_url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as http://llm-vllm:8000/v1")
        return url.rstrip("/") if parts.path.strip("/") else url.rstrip("/") + "/v1"


class Weights(Section):
    """Where the weights are and what holds them."""

    title = "Weights"

    models_dir: Annotated[Path, AfterValidator(_at_home)] = Field(
        Path("models"), description="folder in which `model` is looked up, and fetched into"
    )
    model_url: OrUnset[str] = Field(
        None, description="where to fetch `model` when it is not there: an address, or REPO:FILE of the hub"
    )
    model_checksum: Annotated[str, Field(pattern=r"^(sha256:(auto|[0-9a-fA-F]{64})|off)$")] = Field(
        "sha256:auto", description="of what is fetched: sha256:auto (what its server publishes), sha256:HEX, or off"
    )
    download_timeout: Annotated[float, Field(gt=0)] = Field(
        3600.0, description="seconds that fetching a model may take"
    )
    download_retries: Annotated[int, Field(ge=0)] = Field(
        3, description="tries again after a failed one; counted anew when bytes have come"
    )
    gpu_layers: Literal["auto"] | Annotated[int, Field(ge=-1)] = Field(
        "auto", description="layers on the GPU: auto, -1 (all), 0 or a number", union_mode="left_to_right"
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="share of the free GPU memory that gpu_layers=auto may plan with"
    )


class Computing(Section):
    """How much is computed together, and where."""

    title = "Context and computing"

    ctx: Annotated[int, Field(ge=16)] = Field(8192, description="KV cells, shared by all sequences")
    seq_max: OrUnset[Count] = Field(None, description="longest prompt + answer in tokens; unset: ctx")
    n_predict: Annotated[int, Field(ge=0)] = Field(512, description="max_tokens of requests that do not say")
    parallel: Annotated[int, Field(ge=1, le=128)] = Field(4, description="sequences decoded together")
    threads: OrUnset[Count] = Field(
        None, description="CPU threads, fewer while others use the CPUs; unset: what this process may use"
    )
    threads_batch: OrUnset[Count] = Field(None, description="CPU threads for prompts; unset: threads")
    kv_type: Literal["f16", "q8_0", "q4_0"] = Field(
        "f16", description="type of the KV cells: smaller ones cost accuracy"
    )
    flash_attention: Literal["auto", "on", "off"] = Field("auto", description="auto: where the device has it")
    backend_sampling: bool = Field(
        False, description="sample plain answers on the device, where the logits are; for a GPU with many clients"
    )
    mmap: bool = Field(True, description="map the weights from the file instead of reading them")
    mlock: bool = Field(False, description="keep the weights from being swapped out")
    batch_size: Annotated[int, Field(ge=1)] = Field(512, description="rows of one decode")
    ubatch_size: Annotated[int, Field(ge=1)] = Field(512, description="rows of one pass over the weights")


class PrefixCache(Section):
    """Where the KV of idle sequences stays."""

    title = "Prefix cache"

    host_cache_mb: OrUnset[Annotated[int, Field(ge=0)]] = Field(
        None, description="host memory for idle KV; 0: none; unset: 96, and more on a CPU: up to a 32nd of all memory"
    )
    disk_cache_dir: OrUnset[Path] = Field(
        None, description="folder for the KV of long prefixes, which outlives the process; unset: none"
    )
    disk_cache_mb: Count = Field(1024, description="most of disk_cache_dir that this model and these settings take")
    warm_prefixes: OrUnset[Path] = Field(
        None, description="JSON file of system prompts or message lists that are computed before the first request"
    )


class Pace(Section):
    """How prompts and guesses share the steps with answers."""

    title = "Pace and guesses"

    target_gap_ms: OrUnset[Annotated[float, Field(gt=0)]] = Field(
        None, description="longest step in which answers run; unset: 50 on a GPU, on a CPU by the time of a step"
    )
    prefill_chunk: OrUnset[Count] = Field(
        None, description="prompt rows of a step in which answers run; unset: what target_gap_ms leaves"
    )
    draft_model: OrUnset[str] = Field(
        None, description="GGUF of a smaller model with the same vocabulary, which guesses where that is quicker"
    )
    prompt_lookup: bool = Field(
        True, description="guess tokens that repeat prompt or prediction, where that is quicker"
    )


class Prompting(Section):
    """What a request gets that is silent."""

    title = "Prompts and sampling"

    chat_template: OrUnset[str] = Field(
        None, description="chatml, qwen2, llama-3, gemma, or a Jinja file; unset: the GGUF's own"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(1.0, description="where the request is silent")
    top_p: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="where the request is silent")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="where the request is silent; 0 keeps all")
    min_p: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="where the request is silent")
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="where the request is silent")


class StructuredOutput(Section):
    """What answers must be."""

    title = "Structured output"

    grammar_engine: Literal["auto", "llguidance", "llama"] = Field(
        "auto", description="what enforces schemas and grammars; llama is LlamaGrammar alone"
    )
    json_schema_enforce: bool = Field(True, description="enforce schemas, grammars and tools; false refuses them (400)")
    json_compact: bool = Field(True, description="no optional whitespace in enforced JSON")
    json_close: bool = Field(False, description="end enforced JSON validly before max_tokens would cut it")


class Embedding(Section):
    """Vectors of texts."""

    title = "Embeddings"

    embedding: bool = Field(True, description="serve embeddings")
    embedding_model: OrUnset[str] = Field(None, description="GGUF of its own for embeddings; unset: `model`")
    embedding_ctx: Count = Field(2048, description="longest input of an embedding in tokens")
    embedding_pooling: Literal["auto", "mean", "cls", "last"] = Field("auto", description="auto: what the GGUF says")


class Serving(Section):
    """Who may ask, and for how long."""

    title = "Server"
    without_upstream = False

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8080, description="port to listen on; 0 takes a free one")
    api_keys: Names = Field((), description="keys that clients must send one of, by commas; unset: open", repr=False)
    api_keys_file: OrUnset[Path] = Field(
        None, description="file of keys, one a line, `name: key` to see the name in the log; SIGHUP reads it again"
    )
    key_concurrency: OrUnset[Count] = Field(
        None, description="most requests that one key may have at work; one more gets 429. unset: no limit"
    )
    cors_origins: Annotated[Names, AfterValidator(_check_origins)] = Field(
        (), description="web pages that may call from a browser: https://host[:port] by commas, or *; unset: none"
    )
    ssl_certfile: OrUnset[Path] = Field(
        None, description="PEM certificate chain, to serve HTTPS; SIGHUP reads it again"
    )
    ssl_keyfile: OrUnset[Path] = Field(None, description="PEM key of ssl_certfile; unset: in the same file")
    queue_max: Annotated[int, Field(ge=0)] = Field(
        256, description="sequences that may wait, or requests at the upstream; one more gets 429"
    )
    request_timeout: Annotated[float, Field(gt=0)] = Field(600.0, description="seconds to a request's deadline")
    send_timeout: Annotated[float, Field(gt=0)] = Field(60.0, description="seconds that an answer waits for its reader")
    drain_timeout: Annotated[float, Field(ge=0)] = Field(30.0, description="seconds that answers get at shutdown")
    receive_timeout: Annotated[float, Field(gt=0)] = Field(60.0, description="seconds to send a request in (408)")
    max_connections: Count = Field(1000, description="open connections; one more gets 503")
    max_header_bytes: Annotated[int, Field(ge=1024)] = Field(32 * 2**10, description="largest request head (431)")
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(8 * 2**20, description="largest request body (413)")


class Logging(Section):
    """What is written about it."""

    title = "Logging"
    without_upstream = False

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much is logged")
    log_format: Literal["text", "json"] = Field("text", description="for people, or one JSON object a line")
    slow_request: Annotated[float, Field(ge=0)] = Field(
        60.0, description="seconds from which on a request is logged as a warning; 0 for never"
    )
    tracing: bool = Field(
        False, description="OpenTelemetry traces over OTLP/HTTP to OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra otel"
    )
    verbose: bool = Field(False, description="log at debug level, llama.cpp's own lines too")


SECTIONS: tuple[type[Section], ...] = (
    Model, Upstream, Weights, Computing, PrefixCache, Pace, Prompting, StructuredOutput, Embedding, Serving, Logging,
)  # fmt: skip
