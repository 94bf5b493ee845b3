"""Settings: the sections together, and what holds between them."""

from __future__ import annotations

from pydantic import model_validator

from llm_local.config.sections import (
    SECTIONS,
    Computing,
    Embedding,
    Logging,
    Model,
    Pace,
    PrefixCache,
    Prompting,
    Serving,
    StructuredOutput,
    Upstream,
    Weights,
)


# The last base comes first in `model_fields`, so that they are in the order of SECTIONS.
class Settings(
    Logging, Serving, Embedding, StructuredOutput, Prompting, Pace, PrefixCache, Computing, Weights, Upstream, Model
):
    """Everything that can be set."""

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.seq_max is not None and self.seq_max > self.ctx:
            raise ValueError(f"seq_max ({self.seq_max}) is larger than ctx ({self.ctx}): lower it, too, or unset it")
        if self.engine == "openai_compatible" and self.upstream_url is None:
            raise ValueError(
                "engine openai_compatible needs to know where: set LLM_UPSTREAM_URL, such as http://llm-vllm:8000/v1"
            )
        if self.kv_type != "f16" and self.flash_attention == "off":
            raise ValueError(f"kv_type {self.kv_type} needs flash attention: set flash_attention to auto or on")
        if self.disk_cache_dir is not None and self.host_cache_mb == 0:
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
