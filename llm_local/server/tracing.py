"""OpenTelemetry traces (`LLM_TRACING`, extra `otel`): a span for each request, with queue, prefill and generate in it.

    POST /v1/chat/completions |------------------------------------------|     continues the client's `traceparent`
      queue                     |---|
      prefill                       |------|                                   one of each for every choice
      generate                             |---------------------------|

The children are made of the usage when the request has ended, so that the engine thread knows nothing of them. Spans
go to the collector from a thread of the SDK. Where to, how many and under what name is said by OpenTelemetry's own
variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, ...

The names of attributes are those of the semantic conventions for HTTP and for generative AI:
https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from llm_local import __version__
from llm_local.engine.types import Usage
from llm_local.errors import StartupError
from llm_local.server.requestlog import PROBES, RequestRecord
from llm_local.server.schema import ChatRequest, EmbeddingRequest, SamplingFields

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

FLUSH_S = 3.0
"""How long the last spans may take at shutdown, when the collector does not answer."""

PROTOCOL = "http/protobuf"
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

REQUEST_FIELDS = ("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")
"""Of the body, where the client sent them; in the conventions they are `gen_ai.request.*` under the same names."""


class Tracing:
    """Makes the spans of requests and hands them to the SDK.

    Args:
        exporter: where they go; over OTLP/HTTP when not given.

    Raises:
        StartupError: the extra is not installed, or another protocol is asked for.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise StartupError(
                "LLM_TRACING needs OpenTelemetry: pip install 'llm-local[otel]', or unset LLM_TRACING"
            ) from None
        for variable in PROTOCOL_VARIABLES:
            if os.environ.get(variable, PROTOCOL) != PROTOCOL:
                raise StartupError(f"{variable} is {os.environ[variable]!r}; traces are sent as {PROTOCOL} only")
        name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "llm_local"}
        self._provider = TracerProvider(
            resource=Resource.create({**name, "service.version": __version__}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("llm_local", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Scope, record: RequestRecord) -> Span | None:
        """Start the span of a request; None for those that machines ask for all the time."""
        from opentelemetry.trace import SpanKind

        if scope["path"].startswith(PROBES):
            return None
        headers = Headers(scope=scope)
        sent = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        span = self._tracer.start_span(scope["method"], self._propagator.extract(sent), SpanKind.SERVER)
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        span.set_attributes({"http.request.method": scope["method"], "url.path": scope["path"]})
        return span

    def end(self, span: Span, record: RequestRecord) -> None:
        """End the span of a request, with what is known of it."""
        from opentelemetry.trace import StatusCode

        if span.is_recording():
            span.update_name(f"{span.attributes['http.request.method']} {record.route}")  # type: ignore[attr-defined]
            span.set_attributes(_attributes(record))
            if record.status >= 500 or (record.error is not None and record.status < 400):
                span.set_status(StatusCode.ERROR)
            for index, usage in record.usages.items():
                self._stages(span, record, index, usage)
        span.end()

    def _stages(self, parent: Span, record: RequestRecord, index: int, usage: Usage) -> None:
        from opentelemetry.trace import set_span_in_context

        if record.submitted_at is None:
            return
        context = set_span_in_context(parent)
        at = time.time_ns() - int((time.monotonic() - record.submitted_at) * 1e9)
        for name, milliseconds, tokens in (
            ("queue", usage.queue_ms, None),
            ("prefill", usage.prompt_ms, usage.prompt_tokens - usage.cached_tokens),
            ("generate", usage.generation_ms, usage.completion_tokens),
        ):
            stage = self._tracer.start_span(name, context, start_time=at)
            stage.set_attribute("llm_local.choice", index)
            if tokens is not None:
                stage.set_attribute("llm_local.tokens", tokens)
            at += int(milliseconds * 1e6)
            stage.end(at)

    async def close(self) -> None:
        """Send what is left, for a short while at most."""
        thread = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, FLUSH_S)
        if thread.is_alive():
            log.warning("the last traces could not be sent within %.0f s", FLUSH_S)


def _attributes(record: RequestRecord) -> dict[str, Any]:
    known = {
        "http.route": record.route,
        "http.response.status_code": record.status,
        "error.type": record.error,
        "llm_local.request_id": record.id,
        "llm_local.given_up": record.given_up,
    }
    if record.body is not None:
        known |= _of_model(record, record.body)
    return {name: value for name, value in known.items() if value is not None}


def _of_model(record: RequestRecord, body: SamplingFields | EmbeddingRequest) -> dict[str, Any]:
    costs = record.costs()
    common = {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "llm_local",
        "gen_ai.request.model": body.model or record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.usage.input_tokens": costs.get("prompt_tokens"),
    }
    if isinstance(body, EmbeddingRequest):
        return common
    return common | {
        "gen_ai.operation.name": "chat" if isinstance(body, ChatRequest) else "text_completion",
        "gen_ai.usage.output_tokens": costs.get("generated_tokens"),
        "gen_ai.usage.cache_read.input_tokens": costs.get("cached_tokens"),
        "gen_ai.response.finish_reasons": record.finishes or None,
        "gen_ai.response.time_to_first_chunk": record.first_token_s,
        "gen_ai.request.max_tokens": getattr(body, "max_completion_tokens", None) or body.max_tokens,
        "gen_ai.request.choice.count": body.n if body.n > 1 else None,
        "gen_ai.request.stream": body.stream,
        **{f"gen_ai.request.{name}": getattr(body, name) for name in REQUEST_FIELDS if name in body.model_fields_set},
    }
