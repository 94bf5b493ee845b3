"""Settings: order of the sources, names, types, messages; and that every option says where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_local import config
from llm_local.cli import main
from llm_local.cli.config import markdown
from llm_local.errors import StartupError

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
PAGE = ROOT / "docs" / "configuration.md"


def test_flags_beat_the_environment_that_beats_the_file_that_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("ctx = 1000\nparallel = 3\nport = 1\n")
    loaded = config.load({"port": "9", "host": None}, {"LLM_PARALLEL": "2", "LLM_PORT": "5", "PATH": "/"}, file)
    assert (loaded.settings.ctx, loaded.settings.parallel, loaded.settings.port) == (1000, 2, 9)
    assert loaded.settings.queue_max == 256
    sources = {name: loaded.sources[name] for name in ("ctx", "parallel", "port", "queue_max")}
    assert sources == {"ctx": str(file), "parallel": "environment", "port": "flag", "queue_max": "default"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"LLM_PARALEL": "2"}, "unknown setting LLM_PARALEL .environment.; the nearest is LLM_PARALLEL"),
        ({"LLM_CTX": "many"}, "bad value for LLM_CTX .environment.: 'many': .*integer"),
        ({"LLM_CTX": "1"}, "greater than or equal to 16"),
        ({"LLM_ENGINE": "vllm"}, "llama.cpp"),
        ({"LLM_SEQ_MAX": "9000"}, "seq_max .9000. is larger than ctx .8192.: lower it, too, or unset it"),
        ({"LLM_KV_TYPE": "q8_0", "LLM_FLASH_ATTENTION": "off"}, "kv_type q8_0 needs flash attention"),
        ({"LLM_GPU_LAYERS": "some"}, "bad value for LLM_GPU_LAYERS"),
        ({"LLM_DISK_CACHE_DIR": "/x", "LLM_HOST_CACHE_MB": "0"}, "disk_cache_dir needs host_cache_mb"),
        ({"LLM_DISK_CACHE_MB": "0"}, "bad value for LLM_DISK_CACHE_MB"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(environment: dict[str, str], says: str) -> None:
    with pytest.raises(StartupError, match=says) as caught:
        config.load({}, environment)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_a_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("paralell = 3")
    with pytest.raises(StartupError, match="nearest is parallel"):
        config.load({}, {}, file)


@pytest.mark.parametrize(("text", "says"), [("ctx = ", "not valid TOML"), (None, "cannot read the configuration")])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "a.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(StartupError, match=says):
        config.load({}, {}, file)


def test_names_that_are_for_others_are_left_alone() -> None:
    config.load({}, {"LLM_LOCAL_PORT": "tcp://x", "LLM_BASE_URL": "http://x", "LLM_PROVIDER": "x"})


def test_empty_strings_unset_and_lists_split() -> None:
    loaded = config.load({}, {"LLM_SEQ_MAX": "", "LLM_API_KEYS": "a, b,", "LLM_MODEL_ALIASES": "*"}).settings
    assert (loaded.seq_max, loaded.api_keys, loaded.model_aliases) == (None, ("a", "b"), ("*",))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("-2", "Input should be 'auto' or greater than or equal to -1"),
        ("lots", "Input should be 'auto' or a valid integer, unable to parse string as an integer"),
    ],
)
def test_a_value_of_no_kind_that_a_setting_takes_says_all_of_them(given: str, says: str) -> None:
    with pytest.raises(StartupError) as caught:
        config.load({}, {"LLM_GPU_LAYERS": given})
    assert str(caught.value) == f"bad value for LLM_GPU_LAYERS (environment): '{given}': {says}"


def test_gpu_layers_is_auto_or_a_number() -> None:
    values = [config.load({}, {"LLM_GPU_LAYERS": text}).settings.gpu_layers for text in ("auto", "-1", "12")]
    assert values == ["auto", -1, 12]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_the_profiles_are_valid(path: Path) -> None:
    config.load({}, {}, path)


def test_config_prints_every_setting_with_its_source_and_hides_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_API_KEYS", "sesame")
    monkeypatch.setenv("LLM_CTX", "4096")
    assert main(["config", "--port", "9"]) == 0
    out = capsys.readouterr().out
    for name in config.Settings.model_fields:
        assert config.variable_name(name) in out
    assert "sesame" not in out
    assert "environment" in out
    assert "flag" in out


def test_errors_of_the_command_line_are_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--ctx", "x"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("llm-local: error: bad value for --ctx")


def test_a_wrong_template_is_known_before_the_model_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--chat-template", "qwen9", "--model", "/no/such.gguf"]) == 2
    err = capsys.readouterr().err
    assert "'qwen9', which is neither one of chatml, gemma, llama-3, qwen2" in err
    assert "listening" not in err


def test_the_page_of_settings_is_up_to_date() -> None:
    assert PAGE.read_text() == markdown(), f"{PAGE} is old: run `make docs`"


def test_the_page_has_every_setting_once_with_its_names_default_and_allowed_values() -> None:
    lines = markdown().splitlines()
    for name in config.Settings.model_fields:
        (line,) = [one for one in lines if one.startswith(f"| `{config.variable_name(name)}` |")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:3] == [f"`{config.flag_name(name)}`", f"`{name}`"]
        assert all(cells)
    assert "| `LLM_PARALLEL` | `--parallel` | `parallel` | `4` | a whole number, 1 to 128 |" in markdown()
    assert "| `auto`, a whole number from -1 |" in markdown()


def test_every_setting_stands_in_a_section() -> None:
    sections = {name for section in config.SECTIONS for name in section.model_fields}
    assert list(config.Settings.model_fields) == [name for section in config.SECTIONS for name in section.model_fields]
    assert set(config.Settings.model_fields) == sections, "put the setting into a section of config/sections.py"
    assert all(field.description for field in config.Settings.model_fields.values())
