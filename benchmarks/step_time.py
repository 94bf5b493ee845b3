#!/usr/bin/env python3
"""Where the time of an engine step goes: llama_decode, the C sampler, and Python's own.

    step_time.py MODEL.gguf [--threads 2] [--tokens 100]

The engine runs alone, with its deltas read on an event loop as the server does, at 1, 4, 8 and 16 sequences.
The aim for Python's own time is 0.3 ms + 0.05 ms a sequence.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from llm_local.engine.engine import Engine
from llm_local.engine.stats import EngineStats
from llm_local.engine.types import GenerationRequest, SamplingParams
from llm_local.llama.backend import ContextParams, LlamaBackend
from llm_local.llama.model import LlamaModel

MAX_RUNNING = 16


async def run(engine: Engine, prompt: list[int], n: int, tokens: int) -> None:
    params = [SamplingParams(temperature=0.7, top_k=40, top_p=0.9, seed=seed, ignore_eos=True) for seed in range(n)]
    stream = engine.submit([GenerationRequest(tuple(prompt), one, tokens) for one in params])
    async for _ in stream:
        pass
    stream.close()
    # The last delta comes before the end of its step.
    await asyncio.sleep(0.05)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    sys.setswitchinterval(0.001)
    began = time.perf_counter()
    model = LlamaModel(args.model)
    loaded = time.perf_counter()
    backend = LlamaBackend(model, ContextParams(16384, 512, 512, MAX_RUNNING, MAX_RUNNING + 8, args.threads))
    backend.warm_up()
    engine = Engine(backend, max_running=MAX_RUNNING, queue_max=64, window=4096, answer_reserve=512)
    engine.start()
    print(f"weights {loaded - began:.2f} s, from there to ready {time.perf_counter() - loaded:.2f} s")
    prompt = model.tokenize("Расскажи, как прошёл твой последний проект. ")
    await run(engine, prompt, 1, 4)
    print(f"{'sequences':>9} {'step ms':>9} {'decode ms':>10} {'sample ms':>10} {'python ms':>10} {'aim ms':>7}")
    for n in (1, 4, 8, 16):
        before = EngineStats(**{name: getattr(engine.stats, name) for name in EngineStats.__slots__})
        await run(engine, prompt, n, args.tokens)
        after = engine.stats
        steps = after.steps - before.steps
        step, decode, sample = (
            (getattr(after, name) - getattr(before, name)) / steps * 1e3 for name in ("step_s", "decode_s", "sample_s")
        )
        own = step - decode - sample
        print(f"{n:9} {step:9.2f} {decode:10.2f} {sample:10.2f} {own:10.3f} {0.3 + 0.05 * n:7.2f}")
    await engine.stop()
    model.close()


if __name__ == "__main__":
    asyncio.run(main())
