"""`/metrics`: that it is well formed, and that what happens is counted, whatever it is."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import Response

from llm_local.errors import StartupError
from tests.fakes import FakeBackend
from tests.server.conftest import Served, serving
from tests.server.scrape import Numbers, numbers, wait_for

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
ENDLESS = {"messages": MESSAGES, "max_tokens": 900, "ignore_eos": True}


def slow_backend() -> FakeBackend:
    backend = FakeBackend(n_ctx=2048, n_batch=256, n_slots=8, n_outputs=40)
    backend.delay_s = 0.005
    return backend


def post(body: dict[str, Any], length: int | None = None) -> bytes:
    data = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % (length or len(data)) + data


def leave(url: str, data: bytes) -> None:
    """Send this, and go away soon after."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.sendall(data)
        time.sleep(0.1)


def grown(before: Numbers, after: Numbers) -> Numbers:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def ask(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 4, "ignore_eos": True, **fields})


def test_the_text_is_what_prometheus_reads(http: httpx.Client) -> None:
    ask(http, stream=True)
    text = http.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families) > 40
    for family in families:
        assert family.documentation.endswith(".") or not family.name.startswith("llm_local_"), family.name
    assert "_created" not in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool_finds_nothing_to_say_about_it(http: httpx.Client) -> None:
    ask(http, stream=True, guided_choice=["a", "b"])
    http.get("/nowhere")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=http.get("/metrics").content, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_every_error_is_counted_by_its_code_and_every_request_by_route_and_status() -> None:
    with (
        serving(api_keys=("key",), max_body_bytes=2000, queue_max=0, max_running=1) as served,
        httpx.Client(base_url=served.url, verify=False, headers={"X-Api-Key": "key"}) as http,
    ):
        before = numbers(http)
        http.post(CHAT, json={}, headers={"X-Api-Key": "wrong"})
        http.get("/nowhere/1")
        http.get("/nowhere/2")
        http.get(CHAT)
        http.post(CHAT, content=b"x" * 3000)
        http.post(CHAT, content=b"x", headers={"content-type": "text/plain"})
        http.post(CHAT, json={"messages": MESSAGES, "temperature": 9})
        http.post(CHAT, json={"messages": MESSAGES, "model": "other"})
        http.post("/chat/completions", json={"messages": MESSAGES, "n": 2})
        http.post("/v1/completions", json={"prompt": ["a"], "max_tokens": 3})
        after = wait_for(http, lambda now: now.get('requests_total{route="/v1/completions",status="200"}') == 1)
    more = grown(before, after)
    assert {name: value for name, value in more.items() if name.startswith("errors_total") and value} == {
        'errors_total{code="invalid_api_key"}': 1,
        'errors_total{code="not_found"}': 2,
        'errors_total{code="method_not_allowed"}': 1,
        'errors_total{code="request_too_large"}': 1,
        'errors_total{code="unsupported_media_type"}': 1,
        'errors_total{code="invalid_request_error"}': 2,
        'errors_total{code="model_not_found"}': 1,
    }
    assert {name: value for name, value in more.items() if name.startswith("requests_total") and value} == {
        f'requests_total{{route="{CHAT}",status="401"}}': 1,
        f'requests_total{{route="{CHAT}",status="405"}}': 1,
        f'requests_total{{route="{CHAT}",status="413"}}': 1,
        f'requests_total{{route="{CHAT}",status="415"}}': 1,
        f'requests_total{{route="{CHAT}",status="400"}}': 1,
        f'requests_total{{route="{CHAT}",status="404"}}': 1,
        'requests_total{route="/chat/completions",status="400"}': 1,
        'requests_total{route="/v1/completions",status="200"}': 1,
        'requests_total{route="unknown",status="404"}': 2,
        'requests_total{route="/metrics",status="200"}': more['requests_total{route="/metrics",status="200"}'],
    }
    assert more[f'request_seconds_count{{route="{CHAT}"}}'] == 6
    assert after["requests_in_flight"] == 1


def test_the_gauges_tell_who_runs_who_waits_and_what_memory_that_takes() -> None:
    with serving(slow_backend(), max_running=2, join=True) as served, httpx.Client(base_url=served.url) as http:
        idle = numbers(http)
        assert [idle[f"sequences{kind}"] for kind in ("", "_running", "_waiting")] == [0, 0, 0]
        assert (idle["kv_cells"], idle["kv_usage_ratio"]) == (2048, 0)
        assert (idle["sequences_running_limit"], idle["sequences_limit"]) == (2, 258)
        threads = [threading.Thread(target=ask, args=[http], kwargs={"max_tokens": 40}) for _ in range(5)]
        for thread in threads:
            thread.start()
        busy = wait_for(http, lambda now: now["sequences"] == 5 and now["kv_cells_used"] > 0)
        assert (busy["sequences_running"], busy["sequences_waiting"]) == (2, 3)
        assert busy["requests_in_flight"] == 6
        used, promised = busy["kv_cells_used"], busy["kv_cells_promised"]
        assert 0 < used < 500
        assert promised > 0
        assert busy["kv_usage_ratio"] == pytest.approx((used + promised) / 2048)
        served.engine.drain()
        assert numbers(http)['state{state="draining"}'] == 1
        for thread in threads:
            thread.join()
        after = wait_for(http, lambda now: now["sequences"] == 0 and now["kv_cells_used"] == 0)
        assert after["kv_cells_idle"] + after["kv_cells_used"] == served.backend.n_used > 0
        assert after["kv_usage_ratio"] == 0


def test_an_answer_is_in_every_histogram_that_concerns_it(http: httpx.Client, server: Served) -> None:
    before = numbers(http)
    ask(http)
    ask(http, stream=True, max_tokens=6)
    ask(http, stream=True, max_tokens=1)
    ask(http, guided_choice=["one", "two"], n=2)
    more = grown(before, wait_for(http, lambda now: now["requests_in_flight"] == 1))
    count = {name: more[f"{name}_seconds_count"] for name in ("time_to_first_token", "time_per_output_token", "queue")}
    assert count == {"time_to_first_token": 4, "time_per_output_token": 4, "queue": 5}
    assert more["stream_gap_seconds_count"] <= 6
    assert (more["grammar_seconds_count"], more["grammar_build_seconds_count"]) == (2, 1)
    assert more["time_to_first_token_seconds_sum"] >= more["prompt_seconds_sum"] / 2
    steps, decode = more["engine_step_seconds_total"], more["engine_decode_seconds_total"]
    assert steps >= decode + more["engine_sample_seconds_total"] > 0
    assert more["engine_rows_total"] >= more["engine_steps_total"] > 0
    assert more["engine_sampled_tokens_total"] > 0


def test_the_gaps_between_the_pieces_of_a_stream_are_what_its_reader_waits() -> None:
    with serving(slow_backend(), join=True) as served, httpx.Client(base_url=served.url) as http:
        ask(http, max_tokens=4)
        assert numbers(http)["stream_gap_seconds_count"] == 0
        ask(http, max_tokens=40, stream=True)
        now = wait_for(http, lambda now: now["requests_in_flight"] == 1)
    assert 1 <= now["stream_gap_seconds_count"] <= 39
    assert 0.1 < now["stream_gap_seconds_sum"] <= now['request_seconds_sum{route="/v1/chat/completions"}']


def test_the_first_token_of_an_answer_is_timed_from_the_arrival_of_the_request() -> None:
    with serving(slow_backend(), join=True) as served, httpx.Client(base_url=served.url) as http:
        prepare = served.runtime.in_worker

        async def slowly(*work: Any) -> Any:
            time.sleep(0.05)
            return await prepare(*work)

        served.runtime.__class__.in_worker, kept = (
            (lambda _self, *work: slowly(*work)),
            served.runtime.__class__.in_worker,
        )
        try:
            for stream in (False, True):
                before = numbers(http)
                ask(http, stream=stream)
                more = grown(before, numbers(http))
                assert more["time_to_first_token_seconds_sum"] > 0.1 > more["prompt_seconds_sum"]
        finally:
            served.runtime.__class__.in_worker = kept


def test_each_prompt_of_a_stream_counts_once(http: httpx.Client) -> None:
    before = numbers(http)
    http.post("/v1/completions", json={"prompt": ["abcd", "efg"], "n": 2, "max_tokens": 2, "stream": True})
    more = grown(before, numbers(http))
    assert more["prompt_tokens_total"] == len("abcd" + "efg")
    assert sum(more.get(f'prefix_lookups_total{{result="{result}"}}', 0) for result in ("hit", "miss")) == 2


def test_each_prompt_of_a_request_counts_once_with_what_was_cached_of_it(http: httpx.Client) -> None:
    before = numbers(http)
    fields = {"max_tokens": 2, "ignore_eos": True, "n": 2}
    usage = http.post("/v1/completions", json={"prompt": ["first one", "the second"], **fields}).json()["usage"]
    more = grown(before, numbers(http))
    assert more["prompt_tokens_total"] == usage["prompt_tokens"] == len("first one" + "the second")
    assert more["generated_tokens_total"] == usage["completion_tokens"] == 8
    assert more["cached_prompt_tokens_total"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert more['prefix_lookups_total{result="miss"}'] + more.get('prefix_lookups_total{result="hit"}', 0) == 2
    before = numbers(http)
    http.post("/v1/completions", json={"prompt": "first one", **fields})
    more = grown(before, numbers(http))
    assert more['prefix_lookups_total{result="hit"}'] == 1
    assert more["cached_prompt_tokens_total"] == len("first one") - 1


def test_embeddings_are_counted(http: httpx.Client) -> None:
    before = numbers(http)
    http.post("/v1/embeddings", json={"input": ["ab", "cde"]})
    more = grown(before, numbers(http))
    assert (more["embedding_inputs_total"], more["embedding_tokens_total"]) == (2, 5)
    assert more['requests_total{route="/v1/embeddings",status="200"}'] == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_left_is_counted(stream: bool) -> None:
    with serving(slow_backend(), join=True) as served, httpx.Client(base_url=served.url) as http:
        leave(served.url, post({**ENDLESS, "stream": stream}))
        more = wait_for(http, lambda now: now['cancelled_requests_total{reason="client_left"}'] == 1)
    assert more[f'requests_total{{route="{CHAT}",status="{200 if stream else 499}"}}'] == 1
    assert not [name for name in more if name.startswith("errors_total")]


def test_a_client_that_left_while_it_sent_its_body_is_counted() -> None:
    with serving(join=True) as served, httpx.Client(base_url=served.url) as http:
        leave(served.url, post({"messages": []}, length=1000))
        wait_for(http, lambda now: now['cancelled_requests_total{reason="client_left"}'] == 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_is_an_error_and_a_cancellation(stream: bool) -> None:
    with serving(slow_backend(), join=True) as served, httpx.Client(base_url=served.url) as http:
        ask(http, max_tokens=900, timeout=0.1, stream=stream)
        more = wait_for(http, lambda now: now['cancelled_requests_total{reason="deadline"}'] == 1)
    assert more['errors_total{code="deadline_exceeded"}'] == 1
    assert more[f'requests_total{{route="{CHAT}",status="{200 if stream else 504}"}}'] == 1


def test_a_reader_that_takes_nothing_is_counted() -> None:
    backend = FakeBackend(n_ctx=8192, n_batch=256, n_slots=8, n_outputs=40)
    with (
        serving(backend, window=1500, send_timeout=0.1, join=True, send_buffer=4096) as served,
        httpx.Client(base_url=served.url) as http,
        socket.socket() as reader,
    ):
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
        fields = {**ENDLESS, "max_tokens": 300, "stream": True, "logprobs": True, "top_logprobs": 20}
        reader.sendall(post(fields))
        wait_for(http, lambda now: now['cancelled_requests_total{reason="stalled_reader"}'] == 1, 20)


def test_an_error_in_mid_stream_is_counted_although_the_status_was_200() -> None:
    with serving(slow_backend(), join=True) as served, httpx.Client(base_url=served.url) as http:
        with http.stream("POST", CHAT, json={**ENDLESS, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.backend.fail_with = RuntimeError("a bug")
            assert "engine_dead" in "\n".join(lines)
        more = wait_for(http, lambda now: now.get('errors_total{code="engine_dead"}') == 1)
        assert more['state{state="engine_dead"}'] == 1
        assert more['state{state="ready"}'] == 0
        assert more['cancelled_requests_total{reason="client_left"}'] == 0


def test_any_route_is_counted_also_one_that_raises_or_passes_an_error_on() -> None:
    async def broken(request: Request) -> Response:
        raise ZeroDivisionError

    async def upstream(request: Request) -> Response:
        return Response("bad gateway", 502)

    with serving(join=True) as served, httpx.Client(base_url=served.url) as http:
        app = served.app
        app.add_route("/broken", broken)
        app.add_route("/upstream/{name}", upstream)
        assert http.get("/broken").json()["error"]["code"] == "internal_error"
        assert http.get("/upstream/a").status_code == 502
        assert http.get("/upstream/b").status_code == 502
        more = wait_for(http, lambda now: now.get('errors_total{code="http_502"}') == 2)
    assert more['errors_total{code="internal_error"}'] == 1
    assert more['requests_total{route="/broken",status="500"}'] == 1
    assert more['requests_total{route="/upstream/{name}",status="502"}'] == 2


def test_the_state_is_told_from_the_start() -> None:
    gate = threading.Event()

    def load() -> None:
        gate.wait(5)
        raise StartupError("no such file")

    with serving(load=load, wait=False, join=True) as served, httpx.Client(base_url=served.url) as http:
        assert http.get("/health").status_code == 503
        now = numbers(http)
        assert (now['state{state="loading"}'], now['state{state="ready"}'], now["sequences"]) == (1, 0, 0)
        assert now['requests_total{route="/health",status="503"}'] == 1
        assert not [name for name in now if name.startswith("errors_total")]
        gate.set()
        wait_for(http, lambda now: now['state{state="failed"}'] == 1)


def test_what_runs_here_is_told(http: httpx.Client) -> None:
    now = numbers(http)
    assert now['model_info{model="fake",quantization="Q4_K_M"}'] == 1
    assert (now["model_bytes"], now["model_window_tokens"], now['state{state="ready"}']) == (123, 1024, 1)
    assert [name for name in now if name.startswith('build_info{engine="llama.cpp",version=')]
    assert now["process_resident_memory_bytes"] > 10**7
    assert now["process_open_fds"] > 3
    assert now["process_cpu_seconds_total"] > 0
