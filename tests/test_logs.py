"""The log: both formats, and that one record is one line whatever is in it."""

from __future__ import annotations

import inspect
import io
import json
import logging
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from llm_local.cli import logs
from llm_local.cli.serve import serve
from llm_local.cli.signals import Server
from llm_local.config import Settings
from llm_local.errors import StartupError
from llm_local.server import requestlog
from llm_local.server.requestlog import request_id
from llm_local.server.runtime import Runtime

NASTY = 'a\nb\r\x00\x1b[31m\u2028\u2029\x85"quoted"\ud800'

Start = Callable[..., io.StringIO]


@pytest.fixture
def start() -> Iterator[Start]:
    """Set the log up with settings; return what it is written to."""
    root, quiet = logging.getLogger(), [logging.getLogger(name) for name in logs.QUIET]
    handlers, level, levels = root.handlers[:], root.level, [logger.level for logger in quiet]
    root.handlers.clear()  # `force` closes what it finds, and pytest's own are needed still.

    def set_up(**settings: Any) -> io.StringIO:
        stream = io.StringIO()
        logs.set_up(Settings.model_validate(settings), stream)
        return stream

    yield set_up
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger, before in zip(quiet, levels, strict=True):
        logger.setLevel(before)


def test_a_line_of_text_has_time_level_name_message_and_fields(start: Start) -> None:
    out = start()
    logging.getLogger("llm_local.x").info("it %s", "works", extra={"fields": {"n": 3, "none": None, "s": "a b"}})
    line = out.getvalue()
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d INFO    llm_local\.x: it works n=3 s="a b"\n', line
    )


def test_a_line_of_json_has_stable_names_and_its_time_in_utc(start: Start) -> None:
    out = start(log_format="json")
    extra = {"head": {"method": "GET", "status": 200}, "fields": {"n": 3, "none": None, "level": "not this"}}
    logging.getLogger("llm_local.x").warning("it %s", "works", extra=extra)
    line = json.loads(out.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning", "logger": "llm_local.x", "message": "it works", "method": "GET", "status": 200, "n": 3,
    }  # fmt: skip


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_breaks_a_line(start: Start, log_format: str) -> None:
    out = start(log_format=log_format)
    log = logging.getLogger("llm_local.x")
    log.info("model %s", NASTY, extra={"fields": {"user": NASTY}, "head": {"path": NASTY}})
    log.info("the next")
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert "the next" in lines[1]
    assert not re.search("[\x00-\x1f\x85\u2028]", lines[0])
    if log_format == "json":
        assert json.loads(lines[0])["user"] == NASTY.replace("\ud800", "\\ud800")


def test_an_exception_is_a_field_of_a_json_line_and_lines_of_their_own_in_text(start: Start) -> None:
    def fail() -> None:
        try:
            raise ZeroDivisionError("a\nb")
        except ZeroDivisionError:
            logging.getLogger("x").exception("unexpected error")

    out = start(log_format="json")
    fail()
    assert len(out.getvalue().splitlines()) == 1
    line = json.loads(out.getvalue())
    assert (line["level"], line["message"]) == ("error", "unexpected error")
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ZeroDivisionError: a\nb")
    out = start()
    fail()
    assert "ERROR   x: unexpected error\nTraceback (most recent call last):\n" in out.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_whatever_is_logged_during_a_request_has_its_id(start: Start, log_format: str) -> None:
    out = start(log_format=log_format)
    token = request_id.set("req_1")
    logging.getLogger("other").warning("within")
    request_id.reset(token)
    logging.getLogger("other").warning("outside")
    within, outside = out.getvalue().splitlines()
    assert "req_1" in within
    assert "request_id" not in outside


def test_what_a_signal_says_is_no_requests_line(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    out = start()
    monkeypatch.setattr("os._exit", lambda _: None)
    server = Server(uvicorn.Config(lambda: None, log_config=None), Runtime(Settings()))
    token = request_id.set("req_1")  # It comes while a request is at work.
    try:
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        assert request_id.get() == "req_1"
    finally:
        request_id.reset(token)
    said = out.getvalue()
    assert ("SIGTERM: no request runs" in said, "SIGTERM again" in said, "req_1" in said) == (True, True, False)


def test_lines_of_others_come_in_the_same_format(start: Start) -> None:
    out = start(log_format="json", verbose=True)
    logging.getLogger("uvicorn.error").error("Invalid HTTP request received.")
    logging.getLogger("uvicorn.access").info("not this")
    logging.getLogger("llama.cpp").debug("load_tensors: ...")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("uvicorn.error", "error"),
        ("llama.cpp", "debug"),
        ("py.warnings", "warning"),
    ]


def test_the_level_is_what_the_settings_say(start: Start) -> None:
    for settings, shown in (
        ({}, ["info", "warning"]),
        ({"log_level": "warning"}, ["warning"]),
        ({"verbose": True}, ["debug", "info", "warning"]),
    ):
        out = start(log_format="json", **settings)
        log = logging.getLogger("llm_local.x")
        log.debug("1")
        log.info("2")
        log.warning("3")
        assert [json.loads(line)["level"] for line in out.getvalue().splitlines()] == shown


def test_serve_sets_up_the_log_first_and_traces_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(logs, "set_up", seen.append)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(StartupError, match="OTEL_EXPORTER_OTLP_PROTOCOL"):
        serve(Settings(log_format="json", tracing=True, model="nowhere.gguf"))
    with pytest.raises(StartupError, match=r"nowhere\.gguf"):
        serve(Settings(log_format="json", model="nowhere.gguf"))
    assert [settings.log_format for settings in seen] == ["json", "json"]


def test_every_field_of_a_request_line_is_in_the_documentation() -> None:
    document = (Path(__file__).parent.parent / "docs" / "logs-and-traces.md").read_text()
    source = inspect.getsource(requestlog)
    fields = set(re.findall(r'^ +"([a-z_]+)": ', source, re.MULTILINE))
    assert len(fields) > 15
    assert [field for field in sorted(fields) if f"`{field}`" not in document] == []
