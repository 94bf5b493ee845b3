"""What goes wrong at an upstream, as our errors: in OpenAI's shape, with what to do, and nothing of its inside."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx
import orjson

from llm_local.errors import LLMLocalError, QueueFull, UpstreamFailed, UpstreamRefused, UpstreamUnavailable

log = logging.getLogger(__name__)

RETRY_S = 5
TYPES = {429: "rate_limit_error", 408: "timeout_error", 504: "timeout_error"}
CODES = {404: "model_not_found", 429: "rate_limit_exceeded"}


def from_exception(error: httpx.HTTPError, url: str) -> LLMLocalError:
    """Return our error for a connection that failed; the log has the details."""
    log.warning("upstream %s: %s: %s", url, type(error).__name__, error)
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return UpstreamUnavailable(
            "The upstream cannot be reached. Is it running, and does LLM_UPSTREAM_URL name it?", retry_after_s=RETRY_S
        )
    return UpstreamFailed("The upstream broke off before its answer was complete. Try again.")


def from_answer(status: int, headers: Mapping[str, str], data: bytes, path: str) -> LLMLocalError:
    """Return our error for an answer that is one.

    A client gets what it can act on: the upstream's own words where they are in OpenAI's shape, and `Retry-After`.
    """
    retry_after_s = _seconds(headers.get("retry-after"))
    if status in (401, 403):
        log.error("upstream: %d on %s: the key is wrong or missing (LLM_UPSTREAM_API_KEY)", status, path)
        return UpstreamFailed("The upstream refuses this server's key; its operator should set LLM_UPSTREAM_API_KEY.")
    error = _error_in(data)
    if error is not None and status >= 400:
        return _refused(status, error, retry_after_s)
    log.warning("upstream: %d on %s: %r", status, path, data[:500])
    if status == 429:
        return QueueFull("The upstream is busy.", retry_after_s=retry_after_s)
    if status == 503:
        return UpstreamUnavailable("The upstream is not available.", retry_after_s=retry_after_s or RETRY_S)
    if status in (404, 405):
        return UpstreamFailed(f"The upstream has no {path}; LLM_UPSTREAM_URL should end in /v1.")
    return UpstreamFailed(f"The upstream answered {status}.")


def no_listing(model: str, listed: list[dict[str, Any]]) -> NoReturn:
    """Say that the upstream does not serve what requests are sent on to."""
    served = ", ".join(f"'{entry['id']}'" for entry in listed) or "nothing"
    raise UpstreamUnavailable(
        f"The upstream does not serve '{model}' (LLM_UPSTREAM_MODEL); it serves {served}.", retry_after_s=RETRY_S
    )


def _error_in(data: bytes) -> dict[str, Any] | None:
    """Return the error object: OpenAI's envelope, or the bare one of older vLLM."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict):
        return None
    error = body.get("error", body)
    return error if isinstance(error, dict) and isinstance(error.get("message"), str) else None


def _refused(status: int, error: dict[str, Any], retry_after_s: int | None) -> UpstreamRefused:
    message, kind, code, param = (error.get(name) for name in ("message", "type", "code", "param"))
    # vLLM names exception classes (`BadRequestError`) and puts the status where OpenAI has a word.
    if not (isinstance(kind, str) and kind.endswith("_error")):
        kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    if not isinstance(code, str):
        code = "context_length_exceeded" if "maximum context length" in str(message) else CODES.get(status)
    return UpstreamRefused(
        str(message),
        status=status,
        type=kind,
        code=code,
        param=param if isinstance(param, str) else None,
        retry_after_s=retry_after_s,
    )


def _seconds(retry_after: str | None) -> int | None:
    """Return the seconds of a `Retry-After`, which is a number or a date."""
    if retry_after is None:
        return None
    try:
        return max(math.ceil(float(retry_after)), 0)
    except (ValueError, OverflowError):
        pass
    try:
        seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return max(math.ceil(seconds), 0)
