"""What `/metrics` tells of the engine and the model, read when somebody asks. Event loop.

The engine thread keeps these numbers anyway; reading them takes no lock and costs it nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from llm_local import __version__
from llm_local.engine.engine import Engine
from llm_local.errors import LLMLocalError, Unavailable
from llm_local.server.runtime import Runtime

STATES = ("loading", "ready", "draining", "engine_dead", "failed")
"""As `/health` names them; what is `ok` there is `ready` here."""


class EngineMetrics(Collector):
    """Gauges and counters of a server's engine. Without one, only what is known of the process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        """Yield what is known now."""
        runtime = self._runtime
        yield _info("build", "This program.", version=__version__, engine=runtime.settings.engine)
        yield _state(runtime)
        yield _gauge("embedding_requests", "Requests for embeddings that run or wait.", runtime.n_embedding)
        if runtime.loaded is None:
            yield _gauge("sequences", "Answers that run or wait.", 0)
            return
        model = runtime.loaded.model
        yield _info("model", "The model that generates.", model=model.id, quantization=model.quantization or "unknown")
        yield _gauge("model_bytes", "Size of the weights.", model.size_bytes)
        yield _gauge("model_window_tokens", "Longest sequence, prompt and answer.", model.context_window)
        yield from _queue(runtime.loaded.engine)
        yield from _memory(runtime.loaded.engine)
        yield from _work(runtime.loaded.engine)


def state(runtime: Runtime) -> str:
    """Return which of the states the server is in."""
    if runtime.upstream is not None:
        return "draining" if runtime.upstream.draining else "ready"
    try:
        _ = runtime.ready
    except Unavailable as error:
        return error.code or "failed"
    except LLMLocalError:
        return "failed"
    return "ready"


def _state(runtime: Runtime) -> Metric:
    now = state(runtime)
    family = GaugeMetricFamily("llm_local_state", "1 for the state that the server is in.", labels=["state"])
    for name in dict.fromkeys([*STATES, now]):
        family.add_metric([name], float(name == now))
    return family


def _queue(engine: Engine) -> Iterator[Metric]:
    n_open, n_running = engine.n_open, engine.n_running
    yield _gauge("sequences", "Answers that run or wait.", n_open)
    yield _gauge("sequences_running", "Answers that have a slot.", n_running)
    yield _gauge("sequences_waiting", "Answers that wait for a slot.", max(n_open - n_running, 0))
    yield _gauge("sequences_running_limit", "Most answers that may run together.", engine.max_running)
    yield _gauge("sequences_limit", "Most answers that may run or wait.", engine.capacity)
    preempted = CounterMetricFamily("llm_local_preemptions", "Answers that had to step back.", labels=["reason"])
    preempted.add_metric(["memory"], engine.n_preempted)
    preempted.add_metric(["priority"], engine.n_outpaced)
    yield preempted


def _memory(engine: Engine) -> Iterator[Metric]:
    kept = GaugeMetricFamily(
        "llm_local_kv_bytes",
        "KV of sequences by where it is: cells in use, memory of the host, files.",
        labels=["tier"],
    )
    tiers = engine.kv_bytes()
    for tier in ("resident", "host", "disk"):
        kept.add_metric([tier], getattr(tiers, tier))
    yield kept
    cells = engine.cell_count()
    yield _gauge("kv_cells", "All KV cells, one for each token.", cells.total)
    yield _gauge("kv_cells_used", "KV cells of running answers.", cells.used)
    yield _gauge("kv_cells_promised", "KV cells that running answers may still take.", cells.promised)
    yield _gauge("kv_cells_idle", "KV cells of earlier answers, given up when others need them.", cells.idle)
    share = (cells.used + cells.promised) / cells.total
    yield _gauge("kv_usage_ratio", "Share of the KV cells that running answers have or were promised.", min(share, 1.0))


def _work(engine: Engine) -> Iterator[Metric]:
    stats = engine.stats
    yield _counter("engine_steps", "Steps in which a batch was computed.", stats.steps)
    yield _counter("engine_rows", "Rows of all batches: one for each token that was computed.", stats.rows)
    yield _counter("engine_sampled_tokens", "Tokens that were sampled, also of answers given up.", stats.sampled_tokens)
    yield _counter("engine_refused_tokens", "Sampled tokens that a grammar refused.", stats.refused_tokens)
    yield _counter("engine_step_seconds", "Time of the engine thread in steps, embeddings included.", stats.step_s)
    yield _counter("engine_decode_seconds", "Time of the steps in llama.cpp's decode.", stats.decode_s)
    yield _counter("engine_sample_seconds", "Time of the steps for sampling.", stats.sample_s)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"llm_local_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"llm_local_{name}", text, value=value)


def _info(name: str, text: str, **labels: str) -> Metric:
    return InfoMetricFamily(f"llm_local_{name}", text, value=labels)
