"""Environment files of the older service work to the letter, however Docker, Compose and Kubernetes hand them over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_local import config
from llm_local.client import Target
from llm_local.errors import StartupError

CONFIGS = Path(__file__).parent.parent / "configs"

# Every variable that people have, with what they have in it, and what it must become.
OLD: list[tuple[str, str, Any]] = [
    ("LLM_ENGINE", "llama.cpp", "llama.cpp"),
    ("LLM_MODEL", "Qwen2.5-7B-Instruct-Q5_K_M.gguf", "Qwen2.5-7B-Instruct-Q5_K_M.gguf"),
    ("LLM_MODEL_URL", "https://huggingface.co/Qwen/Qwen2.5-7B-Instruct-GGUF/resolve/main/qwen2.5-7b-instruct-q5_k_m.gguf",
     "https://huggingface.co/Qwen/Qwen2.5-7B-Instruct-GGUF/resolve/main/qwen2.5-7b-instruct-q5_k_m.gguf"),
    ("LLM_CTX", "8192", 8192),
    ("LLM_SEQ_MAX", "2048", 2048),
    ("LLM_N_PREDICT", "512", 512),
    ("LLM_PARALLEL", "4", 4),
    ("LLM_THREADS", "8", 8),
    ("LLM_BATCH_SIZE", "512", 512),
    ("LLM_UBATCH_SIZE", "512", 512),
    ("LLM_HOST", "0.0.0.0", "0.0.0.0"),
    ("LLM_PORT", "8080", 8080),
    ("LLM_GPU_LAYERS", "auto", "auto"),
    ("LLM_GPU_LAYERS", "AUTO", "auto"),
    ("LLM_GPU_LAYERS", "-1", -1),
    ("LLM_GPU_LAYERS", "0", 0),
    ("LLM_GPU_LAYERS", "35", 35),
    ("LLM_GPU_MEMORY_UTILIZATION", "0.9", 0.9),
    ("LLM_EMBEDDING", "true", True),
    ("LLM_CHAT_TEMPLATE", "qwen2", "qwen2"),
    ("LLM_JSON_SCHEMA_ENFORCE", "true", True),
    ("LLM_VERBOSE", "false", False),
    ("LLM_LOG_LEVEL", "info", "info"),
    ("LLM_LOG_LEVEL", "INFO", "info"),
    ("LLM_DOWNLOAD_TIMEOUT", "3600", 3600),
    ("LLM_DOWNLOAD_RETRIES", "3", 3),
    ("LLM_MODEL_CHECKSUM", "sha256:auto", "sha256:auto"),
]  # fmt: skip
KNOWN = {config.variable_name(name) for name in config.Settings.model_fields}


def value_of(environment: dict[str, str], variable: str) -> Any:
    name = variable.removeprefix("LLM_").lower()
    return getattr(config.load({}, environment).settings, name)


@pytest.mark.parametrize(("variable", "text", "value"), OLD)
def test_old_variables_have_their_old_meaning_also_with_quotes_and_spaces(variable: str, text: str, value: Any) -> None:
    for how in ("{}", " {} ", '"{}"', "'{}'", '"{}" ', "{}\r"):
        got = value_of({variable: how.format(text)}, variable)
        assert (got, isinstance(got, bool)) == (value, isinstance(value, bool)), how


EMPTY = ["", " ", '""', "''"]


@pytest.mark.parametrize("variable", sorted(KNOWN))
def test_an_empty_variable_is_the_same_as_none(variable: str) -> None:
    for empty in EMPTY:
        assert config.load({}, {variable: empty}) == config.load({}, {}), empty


@pytest.mark.parametrize("empty", EMPTY)
def test_an_empty_variable_leaves_what_the_file_says(empty: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("parallel = 3")
    assert config.load({}, {"LLM_PARALLEL": empty}, file).settings.parallel == 3


@pytest.mark.parametrize("variable", ["LLM_EMBEDDING", "LLM_JSON_SCHEMA_ENFORCE", "LLM_VERBOSE"])
@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("1", True), ("yes", True), ("on", True), ("TRUE", True),
     ("false", False), ("False", False), ("0", False), ("no", False), ("off", False)],
)  # fmt: skip
def test_booleans_as_people_write_them(variable: str, text: str, value: bool) -> None:
    assert value_of({variable: text}, variable) is value


def test_a_quote_within_a_value_stays() -> None:
    assert value_of({"LLM_API_KEYS": "a\"b,'c"}, "LLM_API_KEYS") == ('a"b', "'c")


def test_a_comment_behind_a_value_is_said_to_be_one() -> None:
    with pytest.raises(StartupError, match="a comment needs a line of its own"):
        config.load({}, {"LLM_CTX": "8192  # cells"})


def test_what_belongs_to_the_client_or_to_kubernetes_is_left_alone() -> None:
    for_others = {
        "LLM_PROVIDER": "llama.cpp",
        "LLM_BASE_URL": "http://llm-local:8080/v1",
        "LLM_LOCAL_SERVICE_HOST": "10.0.0.1",
        "LLM_LOCAL_SERVICE_PORT": "8080",
        "LLM_LOCAL_SERVICE_PORT_HTTP": "8080",
        "LLM_LOCAL_PORT": "tcp://10.0.0.1:8080",
        "LLM_LOCAL_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "LLM_LOCAL_PORT_8080_TCP_ADDR": "10.0.0.1",
        "LLM_VLLM_SERVICE_HOST": "10.0.0.2",
        "LLM_VLLM_PORT": "tcp://10.0.0.2:8000",
        "LLM_VLLM_PORT_8000_TCP_PROTO": "tcp",
        # Of a service that is called `llm`.
        "LLM_SERVICE_HOST": "10.0.0.3",
        "LLM_SERVICE_PORT": "8080",
        "LLM_PORT": "tcp://10.0.0.3:8080",
        "LLM_PORT_8080_TCP_PORT": "8080",
    }
    assert config.load({}, for_others) == config.load({}, {})


def test_a_port_of_ones_own_is_not_taken_for_that_of_kubernetes() -> None:
    assert value_of({"LLM_PORT": "9000", "LLM_SERVICE_PORT": "8080"}, "LLM_PORT") == 9000
    with pytest.raises(StartupError, match="unknown setting LLM_SERVER_PORT"):
        config.load({}, {"LLM_SERVER_PORT": "9000"})


def test_the_upstream_of_old_deployments_is_openais_variable() -> None:
    environment = {"OPENAI_BASE_URL": "http://llm-vllm:8000/v1", "OPENAI_API_KEY": '"key"'}
    loaded = config.load({}, {"LLM_ENGINE": "openai_compatible", **environment})
    assert (loaded.settings.upstream_url, loaded.settings.upstream_api_key) == ("http://llm-vllm:8000/v1", "key")
    assert loaded.sources["upstream_url"] == "OPENAI_BASE_URL"
    own = {"LLM_UPSTREAM_URL": "http://mine:1", "LLM_UPSTREAM_API_KEY": "mine"}
    settings = config.load({}, {"LLM_ENGINE": "openai_compatible", **environment, **own}).settings
    assert (settings.upstream_url, settings.upstream_api_key) == ("http://mine:1/v1", "mine")
    # They are for other programs, too: with llama.cpp they mean nothing.
    assert config.load({}, environment) == config.load({}, {})


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"LLM_ENGINE": "openai_compatible"}, "set LLM_UPSTREAM_URL"),
        (
            {"LLM_ENGINE": "openai_compatible", "LLM_UPSTREAM_URL": "llm-vllm:8000"},
            "must be an address such as http://",
        ),
        ({"LLM_ENGINE": "vllm"}, "'llama.cpp' or 'openai_compatible'"),
    ],
)
def test_an_upstream_that_is_none_is_one_line(environment: dict[str, str], says: str) -> None:
    with pytest.raises(StartupError, match=says) as caught:
        config.load({}, environment)
    assert "\n" not in str(caught.value)


def env_file(path: Path) -> dict[str, str]:
    """Read a file as `docker run --env-file` does: no quotes, no comments behind values."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    pairs = dict(line.split("=", 1) for line in lines)
    assert len(pairs) == len(lines)
    return pairs


def test_the_example_has_every_old_variable_and_loads() -> None:
    environment = env_file(CONFIGS / "env.example")
    assert {variable for variable, _, _ in OLD} <= set(environment)
    settings = config.load({}, environment).settings
    assert (settings.model, settings.seq_max, settings.host) == ("Qwen2.5-7B-Instruct-Q5_K_M.gguf", 2048, "0.0.0.0")
    assert settings.threads is None, "8 of the old files are too many for a small machine"
    assert Target.from_environment(environment).base_url == "http://llm-local:8080/v1"


def test_the_profiles_have_the_figures_of_their_hardware() -> None:
    def profile(name: str) -> config.Settings:
        return config.load({}, {}, CONFIGS / f"{name}.toml").settings

    gpu = profile("rtx-4060-ti")
    assert (gpu.parallel, gpu.ctx, gpu.batch_size, gpu.gpu_layers) == (4, 8192, 512, -1)
    cpu = profile("cpu")
    assert (cpu.parallel, cpu.ctx, cpu.batch_size, cpu.gpu_layers) == (2, 4096, 256, 0)
    vllm = profile("vllm")
    assert (vllm.engine, vllm.upstream_url, vllm.ineffective) == ("openai_compatible", "http://llm-vllm:8000/v1", [])
