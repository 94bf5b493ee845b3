"""The command itself, against our own server on the fake backend."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_local.bench import extra, load, run
from llm_local.bench.options import parse_server, parse_servers
from llm_local.cli import main
from llm_local.errors import StartupError
from tests.bench.server import Behave, Peer, peer, well
from tests.examples import rest_is_slow
from tests.fakes import FakeBackend
from tests.server.conftest import Served, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    backend = FakeBackend(n_ctx=16384, n_batch=256, n_slots=8, n_outputs=40)
    with serving(backend, window=4096) as served:
        yield served


def bench(served: Served, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    servers = [f"ours={served.url}@{os.getpid()}", f"again={served.url}/v1/"]
    common = ["--rounds", "1", "--requests", "1", "--max-tokens", "4", "--clients", "2", "--json", str(out)]
    assert main(["bench", *servers, *common, *arguments]) == 0
    return dict(json.loads(out.read_text()))


@pytest.mark.parametrize(
    "workload",
    rest_is_slow(
        ["chat", "schema", "embeddings", "mixed", "long-prompt", "cold-system", "shared-system", "multi-turn"], fast=4
    ),
)
def test_each_workload_runs_on_our_server(
    server: Served, tmp_path: Path, workload: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"embeddings": ["--prompt-tokens", "2", "--batch", "2"]}.get(workload, ["--prompt-tokens", "20"])
    run = bench(server, tmp_path, "--workload", workload, *fields, "--turns", "2")["runs"][0]
    assert run["errors"] == {"ours": {}, "again": {}}
    assert run["rounds"][0]["ours"]["samples"]
    assert all(one["prompt_tokens"] for one in run["rounds"][0]["ours"]["samples"])
    shown = capsys.readouterr()
    assert workload in shown.out
    assert "ours / again" in shown.out
    assert f"{workload}, 2 clients, round 1/1: ours" in shown.err


def test_a_shared_system_prompt_is_warm_in_the_first_round(server: Served, tmp_path: Path) -> None:
    run = bench(server, tmp_path, "--workload", "shared-system", "--prompt-tokens", "200")["runs"][0]
    for name in ("ours", "again"):
        assert all(one["cached_tokens"] > 200 for one in run["rounds"][0][name]["samples"])


def test_a_rewrite_is_sent_with_its_prediction(server: Served, tmp_path: Path) -> None:
    run = bench(server, tmp_path, "--workload", "rewrite", "--prompt-tokens", "20", "--prediction")["runs"][0]
    assert run["errors"]["ours"] == {}


@pytest.mark.slow
def test_a_report_is_written_and_the_verdict_shown(
    server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "report"
    bench(server, tmp_path, "--rate", "50", "--clients", "", "--report", str(folder), "--profile", "cpu-8")
    assert {path.name for path in folder.iterdir()} == {"index.html", "chat.png"}
    assert "CPU with 8 cores" in capsys.readouterr().out


def test_the_served_model_and_the_memory_of_a_process_are_in_the_json(server: Served, tmp_path: Path) -> None:
    read = bench(server, tmp_path)
    assert read["servers"]["ours"]["model"] == "fake"
    assert read["runs"][0]["rounds"][0]["ours"]["resident_mb"] > 10
    assert read["runs"][0]["rounds"][0]["again"]["resident_mb"] is None
    # One token is one byte here, and Russian has two of them a letter.
    assert read["characters_per_token"]["english"] == pytest.approx(1, abs=0.1)
    assert read["characters_per_token"]["russian"] == pytest.approx(0.57, abs=0.1)


def test_a_server_that_is_not_there_is_counted_beside_one_that_is(
    server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = [f"ours={server.url}", "gone=http://127.0.0.1:9", "--rounds", "2", "--requests", "1", "--clients", "1"]
    assert main(["bench", *arguments, "--max-tokens", "2", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["runs"][0]["errors"] == {"ours": {}, "gone": {"refused": 2}}
    shown = capsys.readouterr()
    assert "gone: 2 of 2 failed: 2 refused" in shown.out
    assert "gone does not answer a first request: refused" in shown.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name at least one server"),
        (["ours"], "'ours' is no server"),
        (["http://x:99999"], "is no server"),
        (["http://x:1", "http://x:1/v1"], "two servers are called 'x:1'"),
        (["http://x:1", "--workload", "chat,chats"], "no workload 'chats'; there are: chat, long-prompt"),
        (["http://x:1", "--workload", "interrupt", "--rate", "1"], "'interrupt' has no open loop"),
        (["http://x:1", "--clients", "1", "--rate", "1"], "give one of them"),
        (["http://x:1", "--rounds", "0"], "'0' is not a number from 1"),
        (["http://x:1", "--leave", "1.5"], "'1.5' is not a share from 0 to 1"),
        (["http://x:1", "--rate", "-1"], "'-1' is not a number above 0"),
        (["http://x:1", "--extra", "[1]"], "is not [NAME:]{JSON fields}"),
        (["http://x:1", "--profile", "abacus"], "there is no profile 'abacus'; there are: rtx-4090"),
        (["http://x:1", "--extra", 'y:{"top_k": 1}'], "--extra names 'y'"),
        (["http://x:1", "--extra", 'x:2:{"top_k": 1}'], "--extra names 'x:2'"),
        (["http://x:1", "--seed", "-1"], "'-1' is not a number from 0"),
        (["http://x:1", "--clients", "1,8,1"], "--clients has 1 twice"),
        (["http://x:1", "--rate", "1,1.0"], "--rate has 1.0 twice"),
        (["http://x:1", "--workload", "chat,chat"], "--workload has chat twice"),
        (["http://x:1", "--json", "/dev/null/out.json"], "cannot make the folder /dev/null: "),
        (["http://x:1", "--json", "/tmp"], "/tmp is a folder"),
        (["http://x:1", "--json", "/proc/out.json"], "cannot write /proc/out.json: "),
        (["http://x:1", "--extra", 'y: {"a": {"b":{"c":1}}}'], "--extra names 'y'"),
        (["http://x:1", "--extra", "y"], "is not [NAME:]{JSON fields}"),
        (["http://x:1", "--workload", "backchannel", "--plain-openai"], "which --plain-openai takes away"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["bench", *arguments])
    except SystemExit as error:  # Of argparse, which shows the usage too.
        code = int(error.code or 0)
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    assert says in last


def test_a_folder_for_the_json_is_made(server: Served, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out.json"
    arguments = [f"ours={server.url}", "--rounds", "1", "--requests", "1", "--clients", "1", "--max-tokens", "2"]
    assert main(["bench", *arguments, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["complete"] is True


def test_what_was_found_before_an_error_of_ours_is_kept(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds: list[float] = []

    def breaks_later(rate: float, *given: Any, **more: Any) -> list[float]:
        rounds.append(rate)
        if len(rounds) == 2:
            raise LookupError("in the second round")
        return load.arrival_times(rate, *given, **more)

    out = tmp_path / "out.json"
    monkeypatch.setattr(run, "arrival_times", breaks_later)
    arguments = [f"ours={server.url}", "--rounds", "2", "--rate", "50", "--max-tokens", "2", "--json", str(out)]
    with pytest.raises(LookupError):
        main(["bench", *arguments])
    read = json.loads(out.read_text())
    assert read["complete"] is False
    assert len(read["runs"][0]["rounds"]) == 1
    assert "chat, 50 requests/s: 1 round" in capsys.readouterr().out


def test_a_run_without_any_round_leaves_an_earlier_file_alone(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any, **__: Any) -> list[float]:
        raise LookupError("in the first round")

    out = tmp_path / "out.json"
    out.write_text("earlier")
    monkeypatch.setattr(run, "arrival_times", breaks)
    with pytest.raises(LookupError):
        main(["bench", f"ours={server.url}", "--rounds", "1", "--rate", "50", "--json", str(out)])
    assert out.read_text() == "earlier"


def commanded(arguments: list[str], behave: Behave = well) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]:
    """Run the command against a tiny server; return head and body of each request, and the JSON."""
    seen: list[tuple[str, dict[str, Any]]] = []

    async def noting(peer: Peer, path: str, body: dict[str, Any]) -> None:
        seen.append((peer.head, body))
        await behave(peer, path, body)

    async def run_it() -> dict[str, Any]:
        async with peer(noting) as url:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out.json"
                command = ["bench", url, "--rounds", "1", "--requests", "1", "--clients", "1", "--json", str(out)]
                assert await asyncio.to_thread(main, [*command, *arguments]) == 0
                return dict(json.loads(out.read_text()))

    read = asyncio.run(run_it())
    return seen, read


def test_the_key_goes_with_every_request() -> None:
    seen, _ = commanded(["--api-key", "sk-1", "--max-tokens", "2"])
    assert len(seen) > 4
    assert all("\r\nAuthorization: Bearer sk-1\r\n" in head for head, _ in seen)
    assert not any("Authorization" in head for head, _ in commanded(["--max-tokens", "2"])[0])


def test_the_temperature_is_what_was_asked_for() -> None:
    for given, expected in (([], 0.7), (["--temperature", "0"], 0.0)):
        seen, _ = commanded(["--max-tokens", "2", *given])
        assert seen[-1][1]["temperature"] == expected


def test_the_timeout_ends_an_answer_that_does_not_come() -> None:
    async def hangs(peer: Peer, path: str, body: dict[str, Any]) -> None:
        await (peer.answer(200, {"data": []}) if path.endswith("/models") else asyncio.sleep(5))

    (errors,) = commanded(["--timeout", "0.05"], hangs)[1]["runs"][0]["errors"].values()
    assert errors == {"timeout": 1}


def test_clients_leave_when_they_are_to() -> None:
    async def slowly(peer: Peer, path: str, body: dict[str, Any]) -> None:
        if path.endswith("/models"):
            return await peer.answer(200, {"data": []})
        peer.begin_stream()
        for _ in range(40):
            peer.text("w ")
            await peer.writer.drain()
            await asyncio.sleep(0.001)
        return peer.end_stream(1, 40)

    (only,) = commanded(["--leave", "1"], slowly)[1]["runs"][0]["rounds"][0].values()
    assert (only["n_left"], only["n_answers"]) == (1, 0)


def test_a_missing_package_is_one_line_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    with pytest.raises(StartupError, match=r"--report needs matplotlib: pip install 'llm-local\[bench\]'"):
        extra.need("matplotlib", "--report")


def test_servers_are_read_with_and_without_names_and_processes() -> None:
    named = parse_server("ours=http://127.0.0.1:8080@4711")
    assert (named.name, named.url, named.pid) == ("ours", "http://127.0.0.1:8080/v1", 4711)
    bare = parse_server("https://api.example.com/openai/v1/")
    assert (bare.name, bare.url, bare.pid) == ("api.example.com", "https://api.example.com/openai/v1", None)
    assert [server.name for server in parse_servers(["http://a:1", "b=http://a:1"])] == ["a:1", "b"]


@pytest.mark.slow
def test_ctrl_c_shows_what_there_is_so_far(server: Served, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    # A process that was started in the background ignores the signal, and so do its children.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start += "; from llm_local.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "bench", f"ours={server.url}", "--seconds", "30", "--clients", "1"]
    process = subprocess.Popen(
        [*command, "--json", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 10
    while not server.engine.n_open and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "interrupted in its first round" in shown
    assert "Traceback" not in errors
    assert json.loads(out.read_text())["complete"] is False
