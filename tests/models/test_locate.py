"""From a model's name to its file and its name in the API."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_local.cli.weights import WeightFiles
from llm_local.config import Settings, load
from llm_local.errors import StartupError
from llm_local.models.locate import locate
from llm_local.models.names import quantization, served_name


@pytest.mark.parametrize(
    ("file", "name", "quant"),
    [
        ("qwen2.5-7b-instruct-q5_k_m-00001-of-00002.gguf", "qwen2.5-7b-instruct", "Q5_K_M"),
        ("Qwen2.5-7B-Instruct-Q5_K_M.gguf", "qwen2.5-7b-instruct", "Q5_K_M"),
        ("qwen2.5-7b-instruct-fp16-00001-of-00004.gguf", "qwen2.5-7b-instruct", "FP16"),
        ("Meta-Llama-3.1-8B-Instruct-IQ4_XS.gguf", "meta-llama-3.1-8b-instruct", "IQ4_XS"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct", "Q4_1"),
        ("my-model.gguf", "my-model", None),
    ],
)
def test_the_api_name_is_the_file_name_without_shard_and_quantization(file: str, name: str, quant: str | None) -> None:
    assert served_name(Path(file)) == name
    assert quantization(Path(file)) == quant


def test_a_name_is_found_as_path_in_the_folder_with_and_without_suffix_and_in_shards(tmp_path: Path) -> None:
    for name in ("a.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"):
        (tmp_path / name).touch()
    assert locate(str(tmp_path / "a.gguf"), Path("nowhere")) == tmp_path / "a.gguf"
    assert locate("a.gguf", tmp_path) == locate("a", tmp_path) == tmp_path / "a.gguf"
    assert locate("big.gguf", tmp_path) == locate("big", tmp_path) == tmp_path / "big-00001-of-00002.gguf"
    assert locate("big-00002-of-00002.gguf", tmp_path) == tmp_path / "big-00001-of-00002.gguf"


def test_what_is_missing_says_where_it_looked_and_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "qwen2.5-7b-q4.gguf").touch()
    with pytest.raises(StartupError, match=r"did you mean qwen2.5-7b-q4.gguf"):
        locate("qwen2.5-7b-q5.gguf", tmp_path)
    (tmp_path / "big-00001-of-00002.gguf").touch()
    with pytest.raises(StartupError, match=r"1 are missing, first big-00002-of-00002\.gguf"):
        locate("big", tmp_path)


def test_models_dir_is_where_names_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    settings = Settings(model="a.gguf", embedding_model="a", models_dir=tmp_path)
    found = WeightFiles(settings).get()
    assert (found.model, found.embedding, found.draft) == (tmp_path / "a.gguf", tmp_path / "a.gguf", None)
    with pytest.raises(StartupError, match="no such model"):
        WeightFiles(Settings(model="a.gguf", models_dir=tmp_path / "none"))


@pytest.mark.parametrize("helper", ["embedding_model", "draft_model"])
def test_of_a_helper_that_is_missing_its_own_setting_is_named(tmp_path: Path, helper: str) -> None:
    (tmp_path / "a.gguf").touch()
    with pytest.raises(StartupError, match=rf"looked for nowhere \(LLM_{helper.upper()}\) ") as caught:
        WeightFiles(Settings.model_validate({"model": "a.gguf", helper: "nowhere", "models_dir": tmp_path}))
    assert "LLM_MODEL_URL" not in str(caught.value)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x.gguf", "x" * 300, "x" * 300 + "/y.gguf", "a\0b"])
def test_what_cannot_be_a_path_is_no_such_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartupError, match="no such model"):
        locate(name, tmp_path)


def test_a_link_to_nowhere_and_a_folder_that_may_not_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").symlink_to("/of/another/machine.gguf")
    with pytest.raises(StartupError, match=r"x.gguf is a link to /of/another/machine.gguf, which is not there"):
        locate("x.gguf", tmp_path)

    def closed(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("os.listdir", closed)
    with pytest.raises(StartupError, match=r"may not look into .* for y.gguf: chmod a\+rx the folders, a\+r the file"):
        locate(str(tmp_path / "y.gguf"), tmp_path)


def test_the_models_folder_may_be_in_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/a.gguf").touch()
    loaded = load({}, {"LLM_MODELS_DIR": "~/weights", "LLM_MODEL": "a.gguf"})
    assert WeightFiles(loaded.settings).get().model == tmp_path / "weights/a.gguf"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {"smollm2-135m"}),
        ({"model": "Their-Q4_0.gguf", "model_url": "https://example.org/x.gguf"}, {"Their-Q4_0.gguf"}),
        ({"model_url": "https://example.org/x.gguf?signature=1"}, set()),
        ({"model": "https://example.org/x.gguf?signature=1"}, set()),
        ({"model": "/app/models/Their-Q4_0.gguf"}, {"/app/models/Their-Q4_0.gguf", "Their-Q4_0.gguf"}),
        ({"model": "me/mine:x.gguf"}, {"me/mine:x.gguf", "mine:x.gguf"}),
    ],
)
def test_the_model_has_the_name_of_the_environment_too_but_no_other_models_and_no_address(
    settings: dict, names: set
) -> None:
    from llm_local.cli import load

    model = SimpleNamespace(path=Path("x.gguf"), size_bytes=1, n_params=1, n_embd=1)
    served = load._served(model, Settings.model_validate(settings), 8, embeds=False)  # type: ignore[arg-type]
    assert {served.id, *served.aliases} == {"x", "x.gguf"} | names
