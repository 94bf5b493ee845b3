"""Settings: defaults < TOML file < environment (`LLM_*`) < flags. Each option is written once, here.

The names in a TOML file are those of the fields, in the environment `LLM_` and the name in capitals, on the command
line `--` and the name with hyphens.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from llm_local.errors import StartupError

ENV_PREFIX = "LLM_"
NOT_SETTINGS = ("LLM_LOCAL_", "LLM_CONFIG", "LLM_BASE_URL", "LLM_PROVIDER")
"""Names in the environment that are for others: clients, tests, and what Kubernetes makes of a service `llm-local`."""


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Count = Annotated[int, Field(ge=1)]


def _optional(kind: Any) -> Any:
    return Annotated[kind | None, BeforeValidator(_empty_is_none)]


class Settings(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    engine: Literal["llama.cpp"] = Field("llama.cpp", description="what computes: llama.cpp, in this process")
    model: str = Field("smollm2-135m", description="GGUF: a path, a file in models_dir, or the embedded smollm2-135m")
    models_dir: Path = Field(Path("models"), description="folder in which `model` is looked up")
    model_id: _optional(str) = Field(None, description="name in the API; unset: the file's name without quantization")  # type: ignore[valid-type]
    model_aliases: Names = Field((), description="more names that requests may use, by commas; * accepts any")
    gpu_layers: Literal["auto"] | Annotated[int, Field(ge=-1)] = Field(
        "auto", description="layers on the GPU: auto, -1 (all), 0 or a number", union_mode="left_to_right"
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="share of the free GPU memory that gpu_layers=auto may plan with"
    )

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

    chat_template: _optional(str) = Field(  # type: ignore[valid-type]
        None, description="chatml, qwen2, llama-3, gemma, or a Jinja file; unset: the GGUF's own"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(1.0, description="where the request is silent")
    top_p: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="where the request is silent")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="where the request is silent; 0 keeps all")
    min_p: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="where the request is silent")
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="where the request is silent")

    grammar_engine: Literal["auto", "llguidance", "llama"] = Field(
        "auto", description="what enforces schemas and grammars; llama is LlamaGrammar alone"
    )
    json_schema_enforce: bool = Field(True, description="enforce response_format; false refuses it (400)")
    json_compact: bool = Field(True, description="no optional whitespace in enforced JSON")
    json_close: bool = Field(False, description="end enforced JSON validly before max_tokens would cut it")

    embedding: bool = Field(True, description="serve embeddings")
    embedding_model: _optional(str) = Field(None, description="GGUF of its own for embeddings; unset: `model`")  # type: ignore[valid-type]
    embedding_ctx: Count = Field(2048, description="longest input of an embedding in tokens")
    embedding_pooling: Literal["auto", "mean", "cls", "last"] = Field("auto", description="auto: what the GGUF says")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8080, description="port to listen on; 0 takes a free one")
    api_keys: Names = Field((), description="keys that clients must send one of, by commas; unset: open", repr=False)
    queue_max: Annotated[int, Field(ge=0)] = Field(256, description="sequences that may wait; one more gets 429")
    request_timeout: Annotated[float, Field(gt=0)] = Field(600.0, description="seconds to a request's deadline")
    send_timeout: Annotated[float, Field(gt=0)] = Field(60.0, description="seconds that a stream waits for its reader")
    drain_timeout: Annotated[float, Field(ge=0)] = Field(30.0, description="seconds that answers get at shutdown")
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(8 * 2**20, description="largest request body")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much is logged")
    verbose: bool = Field(False, description="log at debug level, llama.cpp's own lines too")

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.seq_max is not None and self.seq_max > self.ctx:
            raise ValueError(f"seq_max ({self.seq_max}) is larger than ctx ({self.ctx})")
        if self.kv_type != "f16" and self.flash_attention == "off":
            raise ValueError(f"kv_type {self.kv_type} needs flash attention: set flash_attention to auto or on")
        if self.disk_cache_dir is not None and not self.host_cache_mb:
            raise ValueError("disk_cache_dir needs host_cache_mb, through which its entries are loaded")
        return self

    @property
    def window(self) -> int:
        """Longest sequence in tokens, before the model's own limit."""
        return self.seq_max or self.ctx


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
    if config_file is None and environment.get("LLM_CONFIG"):
        config_file = Path(environment["LLM_CONFIG"])
    layers = [
        *([(str(config_file), _from_toml(config_file))] if config_file is not None else []),
        ("environment", _from_environment(environment)),
        ("flag", {name: value for name, value in flags.items() if value is not None}),
    ]
    for source, layer in layers:
        for name, value in layer.items():
            values[name], sources[name] = value, source
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
    for variable, value in environment.items():
        if not variable.startswith(ENV_PREFIX) or variable.startswith(NOT_SETTINGS):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        _check_known(name, "environment", variable)
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
    return f"bad value for {name} ({sources.get(name, 'default')}): {values.get(name)!r}: {reason}"


def variable_name(name: str) -> str:
    """Return the environment variable of a field."""
    return ENV_PREFIX + name.upper()


def flag_name(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + name.replace("_", "-")
