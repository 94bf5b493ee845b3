"""Which server, which model, which key: from the variables that the callers of the older service have set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

LLAMA_CPP = "llama.cpp"
LOCAL_URL = "http://llm-local:8080/v1"
VLLM_URL = "http://llm-vllm:8000/v1"
MODEL = "qwen2.5-7b-instruct"


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go.

    Attributes:
        engine: `llama.cpp` is this server; anything else another OpenAI server, such as vLLM.
        base_url: its address, with `/v1`.
        model: the `model` of requests.
        api_key: empty without one.
    """

    engine: str = LLAMA_CPP
    base_url: str = LOCAL_URL
    model: str = MODEL
    api_key: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Target:
        """Read LLM_ENGINE (or LLM_PROVIDER), LLM_MODEL, and LLM_BASE_URL and LLM_API_KEY.

        With another engine than llama.cpp the address is OPENAI_BASE_URL, and OPENAI_API_KEY the second choice for the
        key. An empty variable is the same as none.
        """
        variables = os.environ if environment is None else environment

        def first(*names: str) -> str:
            # `docker run --env-file` keeps quotes.
            values = (variables.get(name, "").strip().strip("\"'").strip() for name in names)
            return next(filter(None, values), "")

        engine = (first("LLM_ENGINE", "LLM_PROVIDER") or LLAMA_CPP).lower()
        local = engine in (LLAMA_CPP, "llamacpp", "llama_cpp", "local")
        url = first("LLM_BASE_URL") or LOCAL_URL if local else first("OPENAI_BASE_URL") or VLLM_URL
        return cls(
            engine=LLAMA_CPP if local else engine,
            base_url=url.rstrip("/"),
            model=first("LLM_MODEL") or MODEL,
            api_key=first("LLM_API_KEY") if local else first("LLM_API_KEY", "OPENAI_API_KEY"),
        )
