"""The environment as people and orchestrators leave it: which variables are settings, and what their values are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

ENV_PREFIX = "LLM_"
NOT_SETTINGS = ("LLM_LOCAL_", "LLM_CONFIG", "LLM_BASE_URL", "LLM_PROVIDER")
"""Names that are for others: clients, tests, and what Kubernetes makes of a service `llm-local`."""
_KUBERNETES = re.compile(r"LLM_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
"""What Kubernetes sets in every pod for each service whose name begins with `llm`, such as `llm` or `llm-vllm`."""
_KUBERNETES_PORT = re.compile(r"(tcp|udp|sctp)://")
"""How its `LLM_PORT` and `LLM_VLLM_PORT` begin."""


def settings_in(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that are settings, and their values; an empty one is the same as none."""
    for variable, raw in environment.items():
        if variable.startswith(ENV_PREFIX) and not _is_for_others(variable, raw):
            yield variable, clean(raw)


def clean(value: str) -> str:
    """Return a value without the spaces and the quotes around it, which `docker run --env-file` keeps."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1].strip()
    return value


def _is_for_others(variable: str, value: str) -> bool:
    if variable.startswith(NOT_SETTINGS) or _KUBERNETES.fullmatch(variable):
        return True
    return variable.endswith("_PORT") and _KUBERNETES_PORT.match(value) is not None
