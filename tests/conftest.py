"""What makes thousands of tests quick, and alike wherever they run; it changes nothing of what is tested."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import ssl
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import hypothesis
import pytest
import uvicorn.server

# Hardly anything that the collection of tests imports and makes is garbage.
gc.disable()

# With it jsonschema can judge `iri`, which no test asks for, and building its parser takes 1.5 s of each start.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

# What `make fast` asks for; tests.examples says what it is.
hypothesis.settings.register_profile("fast")

# A shell starts what runs in its background with Ctrl-C ignored, and the processes of tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more worker than CPUs: tests of servers wait, but each worker imports everything for two seconds."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Let collections of garbage begin, rarely, and pass over what was imported, which stays to the end."""
    gc.collect()  # Else what is garbage already would stay, and warn of open files at the end.
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000)


class _Hurried:
    """asyncio as uvicorn sees it, which looks ten times a second whether it is to end: here, twenty times as often."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s / 20)


def _reading_each_file_once() -> Any:
    """Return `ssl.create_default_context` that reads a file of authorities once, not for each HTTP client anew."""
    make = ssl.create_default_context
    made = cache(lambda file: make(cafile=file))

    def context(*arguments: Any, **options: Any) -> ssl.SSLContext:
        return made(options["cafile"]) if not arguments and set(options) == {"cafile"} else make(*arguments, **options)

    return context


@pytest.fixture(scope="session", autouse=True)
def in_a_hurry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", _Hurried())
        patch.setattr(os, "fsync", lambda handle: None)  # No test pulls the plug.
        patch.setattr(ssl, "create_default_context", _reading_each_file_once())
        yield


@pytest.fixture(autouse=True)
def a_log_as_it_was() -> Iterator[None]:
    """What a command that runs within a test sets for the process ends with the test."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)
    logging.captureWarnings(False)
