"""Settings: defaults < TOML file < environment (`LLM_*`) < flags. Each option is written once, in its section.

The names in a TOML file are those of the fields, in the environment `LLM_` and the name in capitals, on the command
line `--` and the name with hyphens. `docs/configuration.md` is made from this file (`make docs`).
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llm_local.environment import ENV_PREFIX, clean, settings_in
from llm_local.errors import StartupError

OPENAI_VARIABLES = {"upstream_url": "OPENAI_BASE_URL", "upstream_api_key": "OPENAI_API_KEY"}
"""Where the settings of an upstream are looked for when nothing else gives them: what OpenAI's own client reads."""


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


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Count = Annotated[int, Field(ge=1)]


def _optional(kind: Any) -> Any:
    return Annotated[kind | None, BeforeValidator(_empty_is_none)]


class Section(BaseModel):
    """Settings that belong together.

    Attributes:
        title: heading in the documentation.
        without_upstream: whether they mean something only where this process computes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    title: ClassVar[str]
    without_upstream: ClassVar[bool] = True

    @field_validator("*", mode="before")
    @classmethod
    def _choices_have_no_case(cls, value: object, info: ValidationInfo) -> object:
        lower = value.lower() if isinstance(value, str) else value
        return lower if lower in choices(info.field_name or "") else value


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
    model_id: _optional(str) = Field(None, description="name in the API; unset: the file's name without quantization")  # type: ignore[valid-type]
    model_aliases: Names = Field((), description="more names that requests may use, by commas; * accepts any")


class Upstream(Section):
    """Where requests go with `engine = "openai_compatible"`."""

    title = "Upstream"
    without_upstream = False

    upstream_url: _optional(str) = Field(  # type: ignore[valid-type]
        None,
        description="address of the OpenAI server that answers, such as http://llm-vllm:8000/v1; "
        "unset: OPENAI_BASE_URL",
    )
    upstream_api_key: _optional(str) = Field(  # type: ignore[valid-type]
        None, description="key that the upstream asks for; unset: OPENAI_API_KEY", repr=False
    )
    upstream_model: _optional(str) = Field(  # type: ignore[valid-type]
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
    model_url: _optional(str) = Field(  # type: ignore[valid-type]
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
    seq_max: _optional(Count) = Field(None, description="longest prompt + answer in tokens; unset: ctx")  # type: ignore[valid-type]
    n_predict: Annotated[int, Field(ge=0)] = Field(512, description="max_tokens of requests that do not say")
    parallel: Annotated[int, Field(ge=1, le=128)] = Field(4, description="sequences decoded together")
    threads: _optional(Count) = Field(  # type: ignore[valid-type]
        None, description="CPU threads, fewer while others use the CPUs; unset: what this process may use"
    )
    threads_batch: _optional(Count) = Field(None, description="CPU threads for prompts; unset: threads")  # type: ignore[valid-type]
    kv_type: Literal["f16", "q8_0", "q4_0"] = Field(
        "f16", description="type of the KV cells: smaller ones cost accuracy"
    )
    flash_attention: Literal["auto", "on", "off"] = Field("auto", description="auto: where the device has it")
    mmap: bool = Field(True, description="map the weights from the file instead of reading them")
    mlock: bool = Field(False, description="keep the weights from being swapped out")
    batch_size: Annotated[int, Field(ge=1)] = Field(512, description="rows of one decode")
    ubatch_size: Annotated[int, Field(ge=1)] = Field(512, description="rows of one pass over the weights")


class PrefixCache(Section):
    """Where the KV of idle sequences stays."""

    title = "Prefix cache"

    host_cache_mb: Annotated[int, Field(ge=0)] = Field(
        96, description="host memory for the KV of idle sequences; 0: what is evicted is computed again"
    )
    disk_cache_dir: _optional(Path) = Field(  # type: ignore[valid-type]
        None, description="folder for the KV of long prefixes, which outlives the process; unset: none"
    )
    disk_cache_mb: Count = Field(1024, description="most of disk_cache_dir that this model and these settings take")
    warm_prefixes: _optional(Path) = Field(  # type: ignore[valid-type]
        None, description="JSON file of system prompts or message lists that are computed before the first request"
    )


class Pace(Section):
    """How prompts and guesses share the steps with answers."""

    title = "Pace and guesses"

    target_gap_ms: _optional(Annotated[float, Field(gt=0)]) = Field(  # type: ignore[valid-type]
        None, description="longest step in which answers run; unset: 50 on a GPU, on a CPU by the time of a step"
    )
    prefill_chunk: _optional(Count) = Field(  # type: ignore[valid-type]
        None, description="prompt rows of a step in which answers run; unset: what target_gap_ms leaves"
    )
    draft_model: _optional(str) = Field(  # type: ignore[valid-type]
        None, description="GGUF of a smaller model with the same vocabulary, which guesses where that is quicker"
    )
    prompt_lookup: bool = Field(
        True, description="guess tokens that repeat prompt or prediction, where that is quicker"
    )


class Prompting(Section):
    """What a request gets that is silent."""

    title = "Prompts and sampling"

    chat_template: _optional(str) = Field(  # type: ignore[valid-type]
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
    json_schema_enforce: bool = Field(True, description="enforce response_format; false refuses it (400)")
    json_compact: bool = Field(True, description="no optional whitespace in enforced JSON")
    json_close: bool = Field(False, description="end enforced JSON validly before max_tokens would cut it")


class Embedding(Section):
    """Vectors of texts."""

    title = "Embeddings"

    embedding: bool = Field(True, description="serve embeddings")
    embedding_model: _optional(str) = Field(None, description="GGUF of its own for embeddings; unset: `model`")  # type: ignore[valid-type]
    embedding_ctx: Count = Field(2048, description="longest input of an embedding in tokens")
    embedding_pooling: Literal["auto", "mean", "cls", "last"] = Field("auto", description="auto: what the GGUF says")


class Serving(Section):
    """Who may ask, and for how long."""

    title = "Server"
    without_upstream = False

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8080, description="port to listen on; 0 takes a free one")
    api_keys: Names = Field((), description="keys that clients must send one of, by commas; unset: open", repr=False)
    api_keys_file: _optional(Path) = Field(  # type: ignore[valid-type]
        None, description="file of keys, one a line, `name: key` to see the name in the log; SIGHUP reads it again"
    )
    key_concurrency: _optional(Count) = Field(  # type: ignore[valid-type]
        None, description="most requests that one key may have at work; one more gets 429. unset: no limit"
    )
    cors_origins: Annotated[Names, AfterValidator(_check_origins)] = Field(
        (), description="web pages that may call from a browser: https://host[:port] by commas, or *; unset: none"
    )
    ssl_certfile: _optional(Path) = Field(  # type: ignore[valid-type]
        None, description="PEM certificate chain, to serve HTTPS; SIGHUP reads it again"
    )
    ssl_keyfile: _optional(Path) = Field(None, description="PEM key of ssl_certfile; unset: in the same file")  # type: ignore[valid-type]
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


# The last base comes first in `model_fields`, so that they are in the order of SECTIONS.
class Settings(
    Logging, Serving, Embedding, StructuredOutput, Prompting, Pace, PrefixCache, Computing, Weights, Upstream, Model
):
    """Everything that can be set."""

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.seq_max is not None and self.seq_max > self.ctx:
            raise ValueError(f"seq_max ({self.seq_max}) is larger than ctx ({self.ctx})")
        if self.engine == "openai_compatible" and self.upstream_url is None:
            raise ValueError(
                "engine openai_compatible needs to know where: set LLM_UPSTREAM_URL, such as http://llm-vllm:8000/v1"
            )
        if self.kv_type != "f16" and self.flash_attention == "off":
            raise ValueError(f"kv_type {self.kv_type} needs flash attention: set flash_attention to auto or on")
        if self.disk_cache_dir is not None and not self.host_cache_mb:
            raise ValueError("disk_cache_dir needs host_cache_mb, through which its entries are loaded")
        if self.key_concurrency is not None and not (self.api_keys or self.api_keys_file):
            raise ValueError("key_concurrency needs keys: set api_keys or api_keys_file")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile, whose key it is")
        return self

    @property
    def window(self) -> int:
        """Longest sequence in tokens, before the model's own limit."""
        return self.seq_max or self.ctx

    @property
    def ineffective(self) -> list[str]:
        """Names of settings that were given and change nothing with this engine."""
        if self.engine == "llama.cpp":
            return [name for name in Upstream.model_fields if name in self.model_fields_set]
        local = [section for section in SECTIONS if section.without_upstream]
        return [name for section in local for name in section.model_fields if name in self.model_fields_set]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and, for each of them, where the value came from."""

    settings: Settings
    sources: Mapping[str, str]


def load(flags: Mapping[str, str | None], environment: Mapping[str, str], config_file: Path | None = None) -> Loaded:
    """Merge all sources.

    Args:
        flags: values from the command line by field name; None was not given.
        environment: usually `os.environ`.
        config_file: TOML; also named by LLM_CONFIG.

    Raises:
        StartupError: an unknown name, a wrong value or an unreadable file, said in one line.
    """
    values: dict[str, Any] = {}
    sources = dict.fromkeys(Settings.model_fields, "default")
    if config_file is None and (named := clean(environment.get("LLM_CONFIG", ""))):
        config_file = Path(named)
    layers = [
        *([(str(config_file), _from_toml(config_file))] if config_file is not None else []),
        ("environment", _from_environment(environment)),
        ("flag", {name: value for name, value in flags.items() if value is not None}),
    ]
    for source, layer in layers:
        for name, value in layer.items():
            values[name], sources[name] = value, source
    if str(values.get("engine", "")).lower() == "openai_compatible":
        for name, variable in OPENAI_VARIABLES.items():
            if not values.get(name) and (value := clean(environment.get(variable, ""))):
                values[name], sources[name] = value, variable
    try:
        return Loaded(Settings.model_validate(values), sources)
    except ValidationError as error:
        raise StartupError(_explain(error, values, sources)) from None


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise StartupError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"{path} is not valid TOML: {error}") from None
    for name in values:
        _check_known(name, str(path), name)
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for variable, value in settings_in(environment):
        name = variable.removeprefix(ENV_PREFIX).lower()
        _check_known(name, "environment", variable)
        if value:
            found[name] = value
    return found


def _check_known(name: str, source: str, shown: str) -> None:
    if name in Settings.model_fields:
        return
    near = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.0)[0]
    if source == "environment":
        near = variable_name(near)
    raise StartupError(f"unknown setting {shown} ({source}); the nearest is {near}. See `llm-local config`.")


def _explain(error: ValidationError, values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    first = error.errors()[0]
    reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    if not first["loc"]:
        return f"bad configuration: {reason}"
    name = str(first["loc"][0])
    value = "(hidden)" if not Settings.model_fields[name].repr else repr(values.get(name))
    hint = ""
    if sources.get(name) == "environment" and " #" in value:
        hint = "; a comment needs a line of its own in an environment file"
    return f"bad value for {name} ({sources.get(name, 'default')}): {value}: {reason}{hint}"


def choices(name: str) -> tuple[str, ...]:
    """Return the words that a field takes, such as `auto`; of a field that takes any text, none."""
    field = Settings.model_fields.get(name)
    return tuple(_words(field.annotation)) if field is not None else ()


def _words(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    return [word for part in get_args(annotation) for word in _words(part)]


def variable_name(name: str) -> str:
    """Return the environment variable of a field."""
    return ENV_PREFIX + name.upper()


def flag_name(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + name.replace("_", "-")
