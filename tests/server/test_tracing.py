"""Traces: the spans of a request, whose trace they belong to, and that nobody waits for the collector."""

from __future__ import annotations

import builtins
import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from llm_local.errors import StartupError
from llm_local.server.tracing import Tracing
from tests.fakes import FakeBackend
from tests.server.conftest import Served, serving

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "ignore_eos": True}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced:
    def __init__(self, served: Served, exporter: InMemorySpanExporter) -> None:
        self.served = served
        self.http = httpx.Client(base_url=served.url)
        self._exporter = exporter

    def spans(self, n: int) -> list[ReadableSpan]:
        """Wait for so many spans; parents first."""
        assert self.served.runtime.tracing is not None
        end = time.monotonic() + 5
        while True:
            self.served.runtime.tracing._provider.force_flush()
            found = self._exporter.get_finished_spans()
            if len(found) >= n:
                assert len(found) == n
                self._exporter.clear()
                return sorted(found, key=lambda span: (span.kind != SpanKind.SERVER, span.start_time))
            assert time.monotonic() < end, found
            time.sleep(0.01)


@contextmanager
def traced(**options: Any) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    with serving(tracing=True, join=True, **options) as served:
        served.runtime.tracing = Tracing(exporter)
        it = Traced(served, exporter)
        with it.http:
            yield it


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_queue_prefill_and_generate_in_it(stream: bool) -> None:
    backend = FakeBackend(n_ctx=2048, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.01
    with traced(backend=backend) as it:
        it.http.post(CHAT, json={**BODY, "stream": stream, "temperature": 0.5})
        request, queue, prefill, generate = it.spans(4)
    assert [span.name for span in (queue, prefill, generate)] == ["queue", "prefill", "generate"]
    assert (request.name, request.kind, request.parent) == (f"POST {CHAT}", SpanKind.SERVER, None)
    for stage in (queue, prefill, generate):
        assert stage.parent.span_id == request.context.span_id
    assert request.start_time <= queue.start_time <= queue.end_time == prefill.start_time
    assert prefill.end_time == generate.start_time < generate.end_time <= request.end_time + 2_000_000
    assert generate.end_time - generate.start_time > 30_000_000
    assert dict(generate.attributes) == {"llm_local.choice": 0, "llm_local.tokens": 5}


def test_attributes_follow_the_semantic_conventions_and_have_no_words_of_the_client() -> None:
    with traced() as it:
        it.http.post(CHAT, json={**BODY, "n": 2, "seed": 7}, headers={"x-request-id": "r1"})
        spans = it.spans(7)
        it.http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 1, "stream": True, "ignore_eos": True})
        completion = it.spans(4)[0].attributes
        it.http.post("/v1/embeddings", json={"input": "abc"})
        embedding = it.spans(1)[0].attributes
    known = dict(spans[0].attributes)
    assert known.pop("gen_ai.usage.input_tokens") > 2
    assert known.pop("gen_ai.usage.cache_read.input_tokens") >= 0
    assert known.pop("gen_ai.response.time_to_first_chunk") > 0
    assert known == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "url.path": CHAT,
        "llm_local.request_id": "r1",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llm_local",
        "gen_ai.request.model": "fake",
        "gen_ai.response.model": "fake",
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": False,
        "gen_ai.request.seed": 7,
    }
    assert sorted(span.attributes["llm_local.choice"] for span in spans[1:]) == [0, 0, 0, 1, 1, 1]
    assert completion["gen_ai.operation.name"] == "text_completion"
    assert (embedding["gen_ai.operation.name"], embedding["gen_ai.usage.input_tokens"]) == ("embeddings", 3)


def test_the_trace_of_the_client_goes_on_here(caplog: pytest.LogCaptureFixture) -> None:
    with traced() as it, caplog.at_level("INFO"):
        it.http.post(CHAT, json=BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"})
        spans = it.spans(4)
        it.http.post(CHAT, json=BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        it.http.post(CHAT, json=BODY, headers={"traceparent": "nonsense"})
        other = it.spans(4)  # That which the client did not sample is not there.
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    assert f"{spans[0].parent.span_id:016x}" == PARENT
    assert spans[0].context.trace_state.get("a") == "b"
    assert f"{other[0].context.trace_id:032x}" != TRACE
    logged: list[Any] = [record for record in caplog.records if record.name == "llm_local.requests"]
    assert logged[0].fields["trace_id"] == TRACE


def test_errors_are_in_the_span() -> None:
    with traced() as it:
        it.http.post(CHAT, json={**BODY, "model": "x"})
        wrong = it.spans(1)[0]
        it.http.get("/nowhere")
        nowhere = it.spans(1)[0]
        it.served.backend.fail_with = RuntimeError("a bug")
        it.http.post(CHAT, json=BODY)
        broken = it.spans(1)[0]
    assert (wrong.attributes["error.type"], wrong.attributes["http.response.status_code"]) == ("model_not_found", 404)
    assert wrong.status.status_code == StatusCode.UNSET  # As the conventions have it: the client is wrong, not we.
    assert nowhere.name == "GET unknown"
    assert (broken.attributes["error.type"], broken.status.status_code) == ("engine_dead", StatusCode.ERROR)


def test_probes_are_not_traced() -> None:
    with traced() as it:
        it.http.get("/health")
        it.http.get("/metrics")
        it.http.get("/v1/models")
        assert it.spans(1)[0].name == "GET /v1/models"


def test_without_the_extra_it_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StartupError, match=r"pip install 'llm-local\[otel\]'"):
        Tracing()


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(StartupError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; .* http/protobuf only"):
        Tracing()


class Collector(BaseHTTPRequestHandler):
    """Takes spans over OTLP/HTTP; `got` has their names, and the service that they are of."""

    got: list[str]
    answers: threading.Event

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        data = gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.got += [one.value.string_value for one in resource.resource.attributes if one.key == "service.name"]
            self.got += [span.name for scope in resource.scope_spans for span in scope.spans]
        self.answers.wait(20)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Collector]]:
    class Own(Collector):
        pass

    Own.got, Own.answers = [], threading.Event()
    server = HTTPServer(("127.0.0.1", 0), Own)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Own
    Own.answers.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_last_spans_are_sent_at_shutdown_to_where_the_standard_variables_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with collector(monkeypatch) as it:
        it.answers.set()
        with serving(join=True) as served:
            served.runtime.tracing = Tracing()
            httpx.post(served.url + CHAT, json=BODY)
            time.sleep(0.05)
        assert it.got == ["llm_local", "queue", "prefill", "generate", f"POST {CHAT}"]


def test_a_collector_that_hangs_does_not_hold_up_the_shutdown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llm_local.server.tracing.FLUSH_S", 0.2)
    with collector(monkeypatch) as it:
        with serving(join=True) as served:
            served.runtime.tracing = Tracing()
            httpx.post(served.url + CHAT, json=BODY)
            began = time.monotonic()
        assert time.monotonic() - began < 3
        assert "the last traces could not be sent" in caplog.text
        assert it.got
