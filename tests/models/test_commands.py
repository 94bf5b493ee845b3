"""`llm-local pull`, `models` and `serve` in processes of their own: killed, interrupted, two at once, on a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from llm_local.cli import main
from llm_local.cli.pull import pull
from llm_local.cli.weights import WeightFiles
from llm_local.config import Settings, load
from llm_local.errors import Draining, StartupError
from tests.models.conftest import Q5, QWEN, ROOT, environment, start, weights
from tests.models.hub import Hub

NAME = "qwen2.5-7b-instruct-q2_k"
FILE = f"{NAME}.gguf"
OLD_URL = f"https://huggingface.co/{QWEN}/resolve/main/qwen2.5-7b-instruct-q5_k_m.gguf"


def wait_for(done: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


def partial_bytes(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "models" / ".downloads").glob("*.partial"))


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_pull_that_is_killed_goes_on_where_it_was(hub: Hub, tmp_path: Path, sign: signal.Signals) -> None:
    env = environment(hub, tmp_path)
    hub.faults.hold_at = 200_000
    first = start(["pull", NAME], env)
    wait_for(lambda: partial_bytes(tmp_path) == 200_000)
    first.send_signal(sign)
    code, _, err = finish(first)
    if sign == signal.SIGINT:
        assert (code, err.splitlines()[-1]) == (130, "interrupted; the same command goes on where it stopped")
    assert not (tmp_path / "models" / FILE).exists()
    hub.faults.hold_at = None
    hub.faults.release.set()
    code, out, _ = finish(start(["pull", NAME], env))
    assert (code, out.strip()) == (0, str(tmp_path / "models" / FILE))
    assert hub.seen[-1].range == "bytes=200000-"
    assert (tmp_path / "models" / FILE).read_bytes() == weights(FILE)
    assert list((tmp_path / "models" / ".downloads").glob("*.partial")) == []


@pytest.mark.slow
def test_two_processes_share_one_download(hub: Hub, tmp_path: Path) -> None:
    env = environment(hub, tmp_path)
    hub.faults.hold_at = 100_000
    first = start(["pull", "qwen2.5-7b-instruct"], env)
    wait_for(lambda: partial_bytes(tmp_path) == 100_000)
    second = start(["pull", "Qwen2.5-7B-Instruct-Q5_K_M.gguf"], env)
    wait_for(lambda: hub.count("GET", "/api/models/") == 2 and hub.count("HEAD", "/resolve/") == 4)
    time.sleep(0.2)
    hub.faults.release.set()
    results = [finish(process) for process in (first, second)]
    assert [code for code, _, _ in results] == [0, 0]
    assert "another process is fetching" in results[1][2]
    assert hub.sent == dict.fromkeys(Q5, 300_000)


@pytest.mark.slow
def test_whoever_waits_goes_on_when_the_first_is_killed(hub: Hub, tmp_path: Path) -> None:
    env = environment(hub, tmp_path)
    hub.faults.hold_at = 100_000
    first = start(["pull", NAME], env)
    wait_for(lambda: partial_bytes(tmp_path) == 100_000)
    second = start(["pull", NAME], env)
    wait_for(lambda: hub.count("HEAD", "/resolve/") == 2)
    hub.faults.hold_at = None
    first.kill()
    finish(first)
    code, _, _ = finish(second)
    assert code == 0
    assert (tmp_path / "models" / FILE).read_bytes() == weights(FILE)
    assert hub.seen[-1].range == "bytes=100000-"


@pytest.mark.slow
def test_a_pull_whose_reader_leaves_ends_quietly(hub: Hub, tmp_path: Path) -> None:
    env = environment(hub, tmp_path)
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "llm_local", "pull", NAME]
    result = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=theirs, check=False)
    os.close(theirs)
    assert (result.returncode, result.stdout) == (128 + signal.SIGPIPE, b"")


@pytest.mark.slow
def test_a_pull_without_stderr_has_its_model(hub: Hub, tmp_path: Path) -> None:
    command = f"exec '{sys.executable}' -m llm_local pull {NAME} 2>&-"
    env = environment(hub, tmp_path)
    result = subprocess.run(command, shell=True, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, str(tmp_path / "models" / FILE))


@pytest.mark.slow
def test_a_terminal_gets_a_bar_with_rate_and_time_left(hub: Hub, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llm_local", "pull", NAME]
    env = environment(hub, tmp_path, COLUMNS="100")
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        out, _ = process.communicate(timeout=30)
    os.close(theirs)
    shown = ""
    with suppress(OSError):
        while piece := os.read(ours, 65536):
            shown += piece.decode()
    os.close(ours)
    assert out.strip() == str(tmp_path / "models" / FILE)
    assert f"{NAME}: 100%" in shown
    assert "B/s" in shown


def test_a_pull_that_fails_is_one_line_and_exit_2(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", f"{QWEN}:q6_k", "--models-dir", str(tmp_path / "models")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"llm-local: error: {QWEN} publishes no Q6_K; there are ")


def test_pull_takes_names_files_and_addresses_and_says_what_is_here(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("me/mine", "x-Q4_0.gguf", weights("x"))
    folder = tmp_path / "models"
    for name, file in [
        (NAME, FILE),
        (OLD_URL, Q5[0]),
        ("me/mine:X-q4_0.gguf", "x-Q4_0.gguf"),
        (f"{hub.url}/me/mine/resolve/main/x-Q4_0.gguf", "x-Q4_0.gguf"),
    ]:
        assert main(["pull", name, "--models-dir", str(folder)]) == 0
        assert capsys.readouterr().out.strip() == str(folder / file)
    assert main(["pull", NAME, "--models-dir", str(folder)]) == 0
    assert "is here already" in capsys.readouterr().err


def test_the_model_of_the_settings_is_pulled_from_where_they_say(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("plain", "theirs.gguf", weights("theirs"))
    monkeypatch.setenv("LLM_MODEL", "my.gguf")
    monkeypatch.setenv("LLM_MODEL_URL", f"{hub.store_url}/plain/theirs.gguf")
    monkeypatch.setenv("LLM_MODELS_DIR", str(tmp_path / "models"))
    assert main(["pull", "my.gguf"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "models/my.gguf")
    assert WeightFiles(load({}, os.environ).settings).get().model == tmp_path / "models/my.gguf"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("model_checksum", "sha256:" + "0" * 64, "what came has the sha256"),
        ("download_retries", 0, "failed after one try"),
        ("download_timeout", 0.5, r"LLM_DOWNLOAD_TIMEOUT \(0.5 s\)"),
    ],
)
def test_each_setting_of_a_download_does_what_it_says(
    hub: Hub, tmp_path: Path, name: str, value: object, says: str
) -> None:
    hub.faults.answers = deque([] if name == "model_checksum" else [(503, {"Retry-After": "1"})])
    settings = Settings.model_validate({"models_dir": tmp_path / "models", name: value})
    with pytest.raises(StartupError, match=says):
        pull(settings, NAME)


def test_models_lists_what_is_known_and_what_is_there(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models"
    assert main(["pull", "qwen2.5-7b-instruct", "--models-dir", str(folder)]) == 0
    (folder / "my-own-Q4_0.gguf").write_bytes(weights("mine"))
    (folder / "half-00001-of-00002.gguf").write_bytes(weights("half"))
    capsys.readouterr()
    assert main(["models", "--models-dir", str(folder)]) == 0
    rows = {tuple(line.split()[:2]): line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert rows["qwen2.5-7b-instruct", "Q5_K_M*"][2:5] == ["600", "kB", "yes"]
    assert rows["qwen2.5-7b-instruct", "Q4_K_M"][2:5] == ["4.7", "GB", "-"]
    assert rows["my-own", "Q4_0"][2:5] == ["300", "kB", "yes"]
    assert rows["half", "?"][2:5] == ["~300", "kB", "partly"]
    assert main(["models", "--models-dir", str(folder), "--json", "--ctx", "1000", "--kv-type", "q8_0"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = next(m for m in document["models"] if (m["name"], m["quantization"]) == ("qwen2.5-7b-instruct", "Q8_0"))
    assert (found["bytes"], found["state"], found["kv_bytes"]) == (8098525408, "no", 57344 * 1000 * 34 // 64)
    assert found["needs_bytes"] > found["bytes"]
    mine = next(m for m in document["models"] if m["name"] == "my-own")
    assert (mine["path"], mine["layers"]) == (str(folder / "my-own-Q4_0.gguf"), None)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_models_lists_files_whose_names_cannot_be_written(hub: Hub, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "models").mkdir()
    for name in (b"b\xff-Q4_0.gguf", "моя-Q4_0.gguf".encode()):
        Path(os.fsdecode(bytes(tmp_path / "models") + b"/" + name)).write_bytes(weights("x"))
    code, out, err = finish(start(["models"], environment(hub, tmp_path, PYTHONIOENCODING=encoding)))
    assert (code, err) == (0, "")
    assert "b\\udcff" in out
    assert ("моя" if encoding == "utf-8" else "\\u043c\\u043e\\u044f") in out


@pytest.mark.slow
def test_serve_says_what_it_waits_for_and_ends_at_once_when_told_to(hub: Hub, tmp_path: Path) -> None:
    env = environment(hub, tmp_path, LLM_MODEL="Qwen2.5-7B-Instruct-Q5_K_M.gguf", LLM_MODEL_URL=OLD_URL)
    hub.faults.hold_at = 200_000
    port = free_port()
    process = start(["serve", "--port", str(port)], env)
    wait_for(lambda: partial_bytes(tmp_path) == 200_000)
    answer = httpx.get(f"http://127.0.0.1:{port}/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "loading")
    assert "downloading 33 % of qwen2.5-7b-instruct-q5_k_m (600 kB)" in answer.json()["error"]["message"]
    assert httpx.get(f"http://127.0.0.1:{port}/health/live").status_code == 200
    began = time.monotonic()
    process.terminate()
    code, _, err = finish(process)
    assert time.monotonic() - began < 5
    assert code == 0
    assert "Traceback" not in err
    assert partial_bytes(tmp_path) == 200_000


@pytest.mark.slow
def test_serve_that_cannot_have_its_model_ends_with_2_and_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.faults.gated = {QWEN}
    process = start(["serve", "--port", "0"], environment(hub, tmp_path, LLM_MODEL="qwen2.5-7b-instruct"))
    code, _, err = finish(process)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"llm-local: error: {QWEN} is gated (401): accept its conditions at ")
    assert "Traceback" not in err


@pytest.mark.slow
def test_serve_warns_of_more_threads_than_there_are_cpus(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / FILE).write_bytes(weights(FILE))
    env = environment(hub, tmp_path, LLM_MODEL=FILE, LLM_THREADS="999")
    code, _, err = finish(start(["serve", "--port", "0"], env))
    assert (code, err.count("WARNING llm_local: LLM_THREADS=999 is more than the ")) == (2, 1)
    _, _, err = finish(start(["serve", "--port", "0"], {**env, "LLM_THREADS": "1"}))
    assert "more than" not in err


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["models"]])
def test_a_build_that_cannot_be_loaded_is_one_line_and_exit_2(hub: Hub, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp/__init__.py").write_text("raise RuntimeError('libcuda.so.1: no such file')")
    code, _, err = finish(start(command, environment(hub, tmp_path, PYTHONPATH=str(tmp_path))))
    says = "llm-local: error: llama-cpp-python does not work here: libcuda.so.1: no such file. Run `make install`"
    assert (code, err.splitlines()[-1]) == (2, says)
    assert "Traceback" not in err


def test_what_nothing_knows_is_refused_before_the_port_is_taken(hub: Hub, tmp_path: Path) -> None:
    settings = Settings(model="qwen2.5-7b-instrukt", models_dir=tmp_path)
    with pytest.raises(StartupError, match=r"did you mean qwen2.5-7b-instruct"):
        WeightFiles(settings)
    assert hub.seen == []


def test_the_models_of_embeddings_and_drafts_are_fetched_too(hub: Hub, tmp_path: Path) -> None:
    embedding, draft = "all-MiniLM-L6-v2-Q8_0.gguf", "qwen2.5-0.5b-instruct-q4_k_m.gguf"
    hub.add("second-state/All-MiniLM-L6-v2-Embedding-GGUF", embedding, weights("e"))
    hub.add("Qwen/Qwen2.5-0.5B-Instruct-GGUF", draft, weights("d"))
    settings = Settings(
        model=NAME,
        models_dir=tmp_path / "models",
        embedding_model="all-minilm-l6-v2",
        draft_model="qwen2.5-0.5b-instruct-q4_k_m",
    )
    files = WeightFiles(settings)
    found = files.get()
    assert [path.name for path in (found.model, found.embedding, found.draft) if path] == [FILE, embedding, draft]
    assert "is being loaded" in files.doing()


def test_a_model_for_embeddings_that_are_off_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    settings = Settings(model=NAME, models_dir=tmp_path, embedding=False, embedding_model="all-minilm-l6-v2")
    assert WeightFiles(settings).get().embedding is None


def test_an_address_alone_names_the_model(hub: Hub, tmp_path: Path) -> None:
    files = WeightFiles(Settings(model_url=f"{QWEN}:q2_k", models_dir=tmp_path / "models"))
    assert files.get().model == tmp_path / "models" / FILE


def test_a_download_is_left_at_once_when_the_server_stops(hub: Hub, tmp_path: Path) -> None:
    hub.faults.hold_at = 100_000
    files = WeightFiles(Settings(model=NAME, models_dir=tmp_path / "models"))
    ended: list[BaseException] = []

    def get() -> None:
        try:
            files.get()
        except Draining as error:
            ended.append(error)

    thread = threading.Thread(target=get)
    thread.start()
    wait_for(lambda: partial_bytes(tmp_path) == 100_000)
    assert "downloading 33 % of" in files.doing()
    files.give_up()
    thread.join(2)
    assert len(ended) == 1
    hub.faults.release.set()
    wait_for(lambda: not any(thread.name == "download" for thread in threading.enumerate()))
    assert not (tmp_path / "models" / FILE).exists()
