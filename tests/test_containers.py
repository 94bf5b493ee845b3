"""The images, compose, and what they install keep their promises, as far as their text shows it."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llm_local.cli import main
from llm_local.config import Settings
from llm_local.engine.disk_cache import CLOSE_TIMEOUT_S

ROOT = Path(__file__).parent.parent
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.cuda")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVING = ("llm-local", "llm-local-cpu")


def instructions(name: str) -> list[tuple[str, str]]:
    """Return (keyword, arguments) of a Dockerfile, each on one line and without comments."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0].upper(), line.split(None, 1)[1].strip()) for line in joined.splitlines() if line.strip()]


def last_stage(name: str) -> list[tuple[str, str]]:
    found = instructions(name)
    return found[max(place for place, (keyword, _) in enumerate(found) if keyword == "FROM") :]


def values(stage: list[tuple[str, str]], keyword: str) -> list[str]:
    return [value for one, value in stage if one == keyword]


def environment(name: str) -> dict[str, str]:
    return dict(part.split("=", 1) for line in values(last_stage(name), "ENV") for part in shlex.split(line))


@pytest.mark.parametrize("name", DOCKERFILES)
class TestDockerfile:
    def test_bases_are_arguments_with_an_exact_tag(self, name: str) -> None:
        arguments = dict(value.split("=", 1) for value in values(instructions(name), "ARG") if "=" in value)
        for base in values(instructions(name), "FROM"):
            image = arguments[re.match(r"\$\{(\w+)\}", base)[1]].replace(
                "${CUDA_VERSION}", arguments.get("CUDA_VERSION", "")
            )
            assert re.search(r":[^:]*\d+\.\d+\.\d+", image), image

    def test_the_last_stage_runs_as_a_number_that_is_not_root(self, name: str) -> None:
        [user] = values(last_stage(name), "USER")
        assert re.fullmatch(r"[1-9]\d{3,}:\d+", user)

    def test_python_is_process_1_and_gets_the_signals(self, name: str) -> None:
        stage = last_stage(name)
        assert json.loads(values(stage, "ENTRYPOINT")[0]) == ["python3", "-m", "llm_local"]
        assert json.loads(values(stage, "CMD")[0]) == ["serve"]
        assert values(stage, "STOPSIGNAL") == ["SIGTERM"]

    def test_health_is_readiness(self, name: str) -> None:
        [check] = values(last_stage(name), "HEALTHCHECK")
        assert json.loads(check.partition("CMD")[2])[-1] == "/app/healthcheck.py"
        assert "scripts/healthcheck.py /app/" in values(last_stage(name), "COPY")
        assert '"/health/ready"' in (ROOT / "scripts/healthcheck.py").read_text()

    def test_models_are_in_a_volume_that_the_user_may_write(self, name: str) -> None:
        stage = last_stage(name)
        assert json.loads(values(stage, "VOLUME")[0]) == ["/app/models"]
        assert environment(name)["HF_HOME"].startswith("/app/models/")
        assert "install -d -o 10001 -g 0 -m 0775 /app /app/models /app/cache" in " ".join(values(stage, "RUN"))

    def test_no_compiler_is_in_the_last_stage(self, name: str) -> None:
        installs = " ".join(values(last_stage(name), "RUN"))
        assert not re.search(r"\b(g\+\+|gcc|build-essential|cmake|make|ninja-build|\S+-dev(el)?)\b", installs)

    def test_a_change_of_our_code_does_not_compile_llama_again(self, name: str) -> None:
        found = [f"{keyword} {value}" for keyword, value in instructions(name)]
        compiled = next(
            place for place, line in enumerate(found) if "requirements/llama.txt" in line and "pip wheel" in line
        )
        copied = [line.split()[1:-1] for line in found[:compiled] if line.startswith("COPY")]
        assert {source for sources in copied for source in sources} == {
            "requirements/build.txt",
            "requirements/llama.txt",
            "scripts/compile_flags.py",
        }

    def test_its_environment_is_of_settings_and_as_people_have_it(self, name: str) -> None:
        ours = {key: value for key, value in environment(name).items() if key.startswith("LLM_")}
        assert {**ours, "LLM_HOST": "0.0.0.0", "LLM_PORT": "8080", "LLM_MODELS_DIR": "/app/models"} == ours
        for key in ours.keys() - {"LLM_CONFIG"}:
            assert key.removeprefix("LLM_").lower() in Settings.model_fields

    def test_what_it_copies_is_not_ignored(self, name: str) -> None:
        kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        for value in values(instructions(name), "COPY"):
            for source in [] if value.startswith("--from") else value.split()[:-1]:
                assert (ROOT / source).exists()
                assert kept & {source, source.split("/")[0]}, source

    @pytest.mark.slow
    def test_hadolint_finds_nothing(self, name: str) -> None:
        result = subprocess.run(
            [Path(sys.executable).parent / "hadolint", name], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.slow
def test_the_scripts_pass_shellcheck() -> None:
    scripts = [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci/run"]
    shellcheck = Path(sys.executable).parent / "shellcheck"
    result = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


class TestCompose:
    @pytest.mark.parametrize(
        ("service", "profile"), [("llm-local", "gpu"), ("llm-local-cpu", "cpu"), ("llm-vllm", "vllm")]
    )
    def test_each_service_has_its_profile(self, service: str, profile: str) -> None:
        assert COMPOSE["services"][service]["profiles"] == [profile]

    @pytest.mark.parametrize("service", SERVING)
    def test_port_env_file_and_models_are_where_people_have_them(self, service: str) -> None:
        has = COMPOSE["services"][service]
        assert has["ports"] == ["${PUBLISH_ADDRESS:-0.0.0.0}:${LLM_PORT:-8080}:${LLM_PORT:-8080}"]
        assert has["env_file"] == [{"path": "${ENV_FILE:-.env}", "required": False}]
        assert "${MODELS:-models}:/app/models" in has["volumes"]
        assert {"models", "cache"} <= COMPOSE["volumes"].keys()
        assert has["restart"] == "unless-stopped"

    @pytest.mark.parametrize("service", ["llm-local", "llm-vllm"])
    def test_a_gpu_is_reserved(self, service: str) -> None:
        [device] = COMPOSE["services"][service]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])

    def test_the_cpu_service_needs_no_gpu_and_answers_to_the_same_name(self) -> None:
        has = COMPOSE["services"]["llm-local-cpu"]
        assert "deploy" not in has
        assert has["environment"]["LLM_GPU_LAYERS"] == "0"
        assert has["networks"]["default"]["aliases"] == ["llm-local"]

    @pytest.mark.parametrize("service", SERVING)
    def test_answers_may_end_before_the_container_is_killed(self, service: str) -> None:
        grace = re.fullmatch(r"\$\{STOP_GRACE:-(\d+)s\}", COMPOSE["services"][service]["stop_grace_period"])
        assert int(grace[1]) >= Settings().drain_timeout + CLOSE_TIMEOUT_S

    @pytest.mark.parametrize("service", SERVING)
    def test_the_container_can_change_nothing_but_its_volumes(self, service: str) -> None:
        has = COMPOSE["services"][service]
        assert has["read_only"] is True
        assert has["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in has["security_opt"]
        assert has["ulimits"]["memlock"] == {"soft": -1, "hard": -1}

    @pytest.mark.parametrize("service", COMPOSE["services"])
    def test_names_that_only_compose_reads_are_no_settings(self, service: str) -> None:
        """The env file is the container's too, where an unknown LLM_ name stops the start."""
        for name in re.findall(r"\$\{(LLM_\w+)", json.dumps(COMPOSE["services"][service])):
            assert name.removeprefix("LLM_").lower() in Settings.model_fields

    def test_build_arguments_are_arguments_of_the_dockerfile(self) -> None:
        for service in SERVING:
            build = COMPOSE["services"][service]["build"]
            known = {value.partition("=")[0] for value in values(instructions(build["dockerfile"]), "ARG")}
            assert build["args"].keys() <= known


class TestLockedRequirements:
    def locked(self, *names: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name in names:
            text = (ROOT / "requirements" / f"{name}.txt").read_text()
            for package, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE):
                found.setdefault(canonicalize_name(package), set()).add(version)
        return found

    def test_everything_that_serving_needs_is_there_in_a_version_that_is_allowed(self) -> None:
        locked = self.locked("serve", "embedded")
        for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["embedded"]]:
            requirement = Requirement(text)
            versions = locked.get(canonicalize_name(requirement.name), set())
            assert versions, f"{requirement.name} is not in requirements/serve.txt; run: make lock"
            assert all(map(requirement.specifier.contains, versions)), f"{text} is not what is locked; run: make lock"

    def test_what_is_compiled_is_what_is_installed(self) -> None:
        assert self.locked("llama")["llama-cpp-python"] == self.locked("serve")["llama-cpp-python"]

    @pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.stem)
    def test_each_has_a_hash_and_none_says_where_it_is_from(self, path: Path) -> None:
        entries = re.split(r"\n(?=\S)", path.read_text())
        assert all("--hash=sha256:" in entry for entry in entries if not entry.startswith("#"))
        assert "://" not in path.read_text()


class TestFlagsWithoutACommand:
    def test_are_for_serve(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["llm-local", "--ctx", "x"])
        assert main() == 2
        assert main(["--model", "/no/such.gguf", "--port", "0"]) == 2
        said = capsys.readouterr().err
        assert "bad value for --ctx (flag)" in said
        assert "/no/such.gguf" in said

    @pytest.mark.parametrize("flag", ["--help", "--version", "-h"])
    def test_help_and_version_are_for_the_whole_program(self, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main([flag])
        assert ended.value.code == 0
        assert "--ctx" not in capsys.readouterr().out

    def test_a_command_stays_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "--port", "9"]) == 0
        assert "LLM_PORT" in capsys.readouterr().out


@pytest.mark.slow
def test_sigterm_ends_a_process_that_still_starts(tmp_path: Path) -> None:
    configuration = tmp_path / "a.toml"
    os.mkfifo(configuration)
    process = subprocess.Popen([sys.executable, "-m", "llm_local", "serve", "--config", str(configuration)], cwd=ROOT)
    try:
        # Opening it returns when the other end reads, which waits for ever for a first byte.
        with configuration.open("wb"):
            process.terminate()
            assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Serve `status` for /health/ready, and give the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()
            self.wfile.write(b'{"status": "of a test"}')

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def healthcheck(port: int | str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(ROOT / "scripts/healthcheck.py")]
    environment = {**os.environ, "LLM_HOST": "0.0.0.0", "LLM_PORT": str(port), **more}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_healthcheck_says_what_readiness_says(status: int, code: int) -> None:
    with answering(status) as port:
        result = healthcheck(port)
    assert (result.returncode, result.stdout) == (code, f'{status} {{"status": "of a test"}}\n')


def test_the_healthcheck_reads_the_environment_as_the_server_does() -> None:
    with answering(200) as port:
        assert healthcheck(f'"{port}"', LLM_SSL_CERTFILE="''").returncode == 0
        assert "no answer on 127.0.0.9:" in healthcheck(port, LLM_HOST="127.0.0.9").stdout


@pytest.mark.slow
def test_the_healthcheck_of_a_server_that_is_gone_says_so() -> None:
    with answering(200) as port:
        pass
    result = healthcheck(port)
    assert result.returncode == 1
    assert f"no answer on 127.0.0.1:{port}" in result.stdout
    assert not result.stderr
