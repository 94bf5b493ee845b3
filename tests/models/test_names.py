"""What people write for a model: names, spellings, old files and addresses, against what is published."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from llm_local.chat.template import named_template
from llm_local.errors import StartupError
from llm_local.models import catalogue
from llm_local.models.catalogue import KnownModel, find, find_repository, known_models
from llm_local.models.choose import choose
from llm_local.models.find import find_model
from llm_local.models.locate import locate, look
from llm_local.models.names import ModelName, parse_name, served_name, shard_names
from llm_local.models.source import HubFile, Source, WebFile, read_source, source_of
from tests.models.conftest import Q5, QWEN
from tests.models.hub import Hub

HUB = "https://huggingface.co"
LLAMA = "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF"
OLD_LLAMA = "bartowski/Llama-3.1-8B-Instruct-GGUF"
F16 = [f"qwen2.5-7b-instruct-fp16-0000{n}-of-00004.gguf" for n in (1, 2, 3, 4)]
PUBLISHED = [*Q5, *F16, "qwen2.5-7b-instruct-q2_k.gguf", "README.md", "mmproj-f16.gguf"]
LLAMAS = [f"Meta-Llama-3.1-8B-Instruct-{kind}.gguf" for kind in ("Q4_K_M", "Q5_K_M", "f32")]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen2.5-7B-Instruct-Q5_K_M.gguf", ModelName("qwen2.5-7b-instruct", "Q5_K_M")),
        ("qwen2.5-7b-instruct-q5_k_m-00001-of-00002.gguf", ModelName("qwen2.5-7b-instruct", "Q5_K_M")),
        ("/app/models/qwen2.5-7b-instruct-FP16.GGUF", ModelName("qwen2.5-7b-instruct", "F16")),
        ("nomic-embed-text-v1.5.f16.gguf", ModelName("nomic-embed-text-v1.5", "F16")),
        ("qwen2.5-7b-instruct:q4_k_m", ModelName("qwen2.5-7b-instruct", "Q4_K_M")),
        ("qwen2.5-7b-instruct", ModelName("qwen2.5-7b-instruct")),
    ],
)
def test_spellings_of_a_name_are_told_apart_only_by_what_they_mean(text: str, name: ModelName) -> None:
    assert parse_name(text) == name


def test_the_served_name_is_the_same_whatever_the_quantization() -> None:
    for file in ("Qwen2.5-7B-Instruct-Q4_K_M.gguf", Q5[0], F16[0], "qwen2.5-7b-instruct-q8_0-00001-of-00003.gguf"):
        assert served_name(Path(file)) == "qwen2.5-7b-instruct"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("qwen2.5-7b-instruct", HubFile(QWEN, Q5[0])),
        ("Qwen2.5-7B-Instruct-Q5_K_M.gguf", HubFile(QWEN, Q5[0])),
        ("/app/models/Qwen2.5-7B-Instruct-F16.gguf", HubFile(QWEN, F16[0])),
        ("qwen2.5-7b-instruct-q3_k_m", HubFile(QWEN, quantization="Q3_K_M")),
        ("Llama-3.1-8B-Instruct-Q4_K_M.gguf", HubFile(LLAMA, LLAMAS[0])),
        (f"{QWEN}:q5_k_m", HubFile(QWEN, quantization="Q5_K_M")),
        (QWEN, HubFile(QWEN)),
        ("me/mine:sub/x-Q4_0.gguf", HubFile("me/mine", "sub/x-Q4_0.gguf")),
        (f"{OLD_LLAMA}:Q4_K_M", HubFile(LLAMA, quantization="Q4_K_M")),
        (
            f"{HUB}/{QWEN}/resolve/main/qwen2.5-7b-instruct-q5_k_m.gguf",
            HubFile(QWEN, "qwen2.5-7b-instruct-q5_k_m.gguf"),
        ),
        (f"{HUB}/{QWEN}/blob/v1/{Q5[1]}?download=true", HubFile(QWEN, Q5[1], revision="v1")),
        (f"{HUB}/{OLD_LLAMA}/resolve/main/x-Q5_K_M.gguf", HubFile(LLAMA, "x-Q5_K_M.gguf")),
        (f"{HUB}/{QWEN}/tree/main", HubFile(QWEN)),
        ("http://mirror.test/hf/a/b/resolve/main/c.gguf", HubFile("a/b", "c.gguf")),
        (
            "https://example.org/a/b/resolve/main/c.gguf",
            WebFile("https://example.org/a/b/resolve/main/c.gguf", "c.gguf"),
        ),
        ("https://example.org/x%20y.gguf?sig=1", WebFile("https://example.org/x%20y.gguf?sig=1", "x y.gguf")),
        (
            "https://example.org/a-00002-of-00002.gguf",
            WebFile("https://example.org/a-00002-of-00002.gguf", "a-00001-of-00002.gguf"),
        ),
        ("https://example.org/a/%2e%2e", WebFile("https://example.org/a/%2e%2e", "model.gguf")),
        ("https://example.org/a%00.gguf", WebFile("https://example.org/a%00.gguf", "model.gguf")),
        (f"{HUB}/me/mine/resolve/refs%2Fpr%2F1/x%20y.gguf", HubFile("me/mine", "x y.gguf", revision="refs/pr/1")),
        ("my-model.gguf", None),
        ("models/my-model.gguf", None),
        ("smollm2-135m", None),
    ],
)
def test_what_is_written_says_where_to_fetch(text: str, source: Source | None) -> None:
    assert read_source(text, "http://mirror.test/hf") == source


def test_what_begins_as_an_address_and_is_none_is_one_line() -> None:
    with pytest.raises(StartupError, match=r"'https://\[::1/x.gguf' is no address: Invalid IPv6 URL"):
        read_source("https://[::1/x.gguf", HUB)


def test_an_address_says_where_and_the_name_what_it_is_called() -> None:
    url = "https://example.org/download?id=3"
    assert source_of("my.gguf", url, HUB) == WebFile(url, "my.gguf")
    old = f"{HUB}/{QWEN}/resolve/main/qwen2.5-7b-instruct-q5_k_m.gguf"
    assert source_of("Qwen2.5-7B-Instruct-Q5_K_M.gguf", old, HUB) == read_source(old, HUB)
    assert source_of("", f"{QWEN}:q2_k", HUB) == HubFile(QWEN, quantization="Q2_K")
    with pytest.raises(StartupError, match="LLM_MODEL_URL: 'qwen' is neither an https address nor REPO:FILE"):
        source_of("my.gguf", "qwen", HUB)


@pytest.mark.parametrize("name", ["Qwen2.5-7B-Instruct-Q4_K_M.gguf", "Llama-3.1-8B-Instruct-Q5_K_M.gguf"])
@pytest.mark.parametrize("where", [f"{HUB}/{QWEN}/resolve/main", "https://example.org/weights"])
def test_an_address_left_over_from_another_model_is_refused(name: str, where: str) -> None:
    old = f"{where}/qwen2.5-7b-instruct-q5_k_m.gguf"
    with pytest.raises(
        StartupError, match=rf"LLM_MODEL is {name}, and LLM_MODEL_URL is the address of qwen.* unset it"
    ):
        source_of(name, old, HUB)


@pytest.mark.parametrize(
    ("source", "files"),
    [
        (HubFile(QWEN, "qwen2.5-7b-instruct-q5_k_m.gguf"), Q5),
        (HubFile(QWEN, "Qwen2.5-7B-Instruct-Q5_K_M.gguf"), Q5),
        (HubFile(QWEN, Q5[1]), Q5),
        (HubFile(QWEN, "qwen2.5-7b-instruct-f16.gguf"), F16),
        (HubFile(QWEN, quantization="F16"), F16),
        (HubFile(QWEN), Q5),
        (HubFile(QWEN, "QWEN2.5-7B-INSTRUCT-Q2_K.GGUF"), ["qwen2.5-7b-instruct-q2_k.gguf"]),
    ],
)
def test_old_single_file_names_find_the_shards_that_exist(source: HubFile, files: list[str]) -> None:
    assert choose(source, PUBLISHED) == files


def test_the_old_llama_name_finds_what_is_published_and_f16_names_what_there_is() -> None:
    assert choose(HubFile(LLAMA, "Llama-3.1-8B-Instruct-Q5_K_M.gguf"), LLAMAS) == [LLAMAS[1]]
    with pytest.raises(StartupError, match=r"publishes no F16; there are .*-Q4_K_M.gguf, .*, .*-f32.gguf"):
        choose(HubFile(LLAMA, quantization="F16"), LLAMAS)


def test_files_in_folders_are_found_with_all_their_shards() -> None:
    files = [f"BF16/x-BF16-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert choose(HubFile("me/mine", quantization="BF16"), files) == files
    with pytest.raises(StartupError, match=r"me/mine lacks BF16/x-BF16-00002-of-00002.gguf, one of the 2 shards"):
        choose(HubFile("me/mine", quantization="BF16"), files[:1])


def test_of_files_of_one_name_the_one_in_the_folder_that_was_asked_for_is_meant() -> None:
    files = ["a/ggml-model.gguf", "b/ggml-model.gguf"]
    assert choose(HubFile("me/mine", "b/ggml-model.gguf"), files) == files[1:]
    with pytest.raises(StartupError, match=r"name one as me/mine:FILE; there are a/ggml-model.gguf, b/ggml-model.gguf"):
        choose(HubFile("me/mine", "ggml-model.gguf"), files)
    assert choose(HubFile("me/mine", "ggml-model.gguf"), [*files, "ggml-model.gguf"]) == ["ggml-model.gguf"]


def test_projectors_and_importance_matrices_are_no_models() -> None:
    files = ["x-f16.gguf", "x-mmproj-f16.gguf", "x.imatrix.gguf"]
    assert choose(HubFile("me/mine", quantization="F16"), files) == choose(HubFile("me/mine"), files) == files[:1]


def test_a_set_of_no_shards_is_taken_as_a_single_file(tmp_path: Path) -> None:
    odd = "x-00001-of-00000.gguf"
    (tmp_path / odd).touch()
    assert look("x-00001-of-00000", tmp_path) == tmp_path / odd
    assert look("none", tmp_path) is None
    assert shard_names(odd) == [odd]


def test_a_repository_with_several_models_asks_for_one() -> None:
    with pytest.raises(
        StartupError, match=r"publishes several models, name one as me/mine:FILE; there are a.gguf, b.gguf"
    ):
        choose(HubFile("me/mine"), ["a.gguf", "b.gguf", "mmproj-a.gguf"])
    assert choose(HubFile("me/mine"), ["a.gguf", "mmproj-a.gguf"]) == ["a.gguf"]
    with pytest.raises(StartupError, match="there is no GGUF in it"):
        choose(HubFile("me/mine", "a.gguf"), ["model.safetensors"])


def test_files_on_the_disk_are_found_in_any_spelling(tmp_path: Path) -> None:
    for name in (*Q5, *F16, LLAMAS[0]):
        (tmp_path / name).touch()
    for name in (
        "Qwen2.5-7B-Instruct-Q5_K_M.gguf",
        "qwen2.5-7b-instruct",
        "/app/models/Qwen2.5-7B-Instruct-Q5_K_M.gguf",
    ):
        assert look(name, tmp_path) == tmp_path / Q5[0]
    assert look("Qwen2.5-7B-Instruct-F16.gguf", tmp_path) == tmp_path / F16[0]
    assert look("Llama-3.1-8B-Instruct-Q4_K_M.gguf", tmp_path) == tmp_path / LLAMAS[0]
    assert look("qwen2.5-7b-instruct-q8_0", tmp_path) is None


def test_a_model_whose_shards_are_missing_is_fetched_and_one_without_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / Q5[0]).touch()
    assert find_model("qwen2.5-7b-instruct", None, tmp_path) == HubFile(QWEN, Q5[0])
    (tmp_path / "my-00001-of-00002.gguf").touch()
    with pytest.raises(StartupError, match=r"1 are missing, first my-00002-of-00002.gguf"):
        find_model("my", None, tmp_path)


@pytest.mark.parametrize("file", ["Tiny-Q4_0.gguf", "tiny.q4_0.gguf"])
def test_a_repository_finds_what_was_fetched_from_it_or_put_there_without_asking_the_hub(
    tmp_path: Path, file: str
) -> None:
    (tmp_path / file).touch()
    assert find_model("me/Tiny-GGUF:q4_0", None, tmp_path) == tmp_path / file
    assert find_model(f"{HUB}/me/Tiny-GGUF", None, tmp_path) == tmp_path / file
    assert find_model("me/Tiny-GGUF:q8_0", None, tmp_path) == HubFile("me/Tiny-GGUF", quantization="Q8_0")
    (tmp_path / "Tiny-Q8_0.gguf").touch()
    assert find_model(f"{HUB}/me/Tiny-GGUF", None, tmp_path) == HubFile("me/Tiny-GGUF"), "which of them it means"
    (tmp_path / "qwen2.5-7b-instruct-q3_k_m.gguf").touch()
    assert find_model(f"{QWEN}:q3_k_m", None, tmp_path) == tmp_path / "qwen2.5-7b-instruct-q3_k_m.gguf"
    assert find_model(QWEN, None, tmp_path) == HubFile(QWEN)


def test_an_address_finds_what_it_fetched_before(tmp_path: Path) -> None:
    for name in Q5:
        (tmp_path / name).touch()
    url = f"{HUB}/{QWEN}/resolve/main/qwen2.5-7b-instruct-q5_k_m.gguf"
    assert find_model("my-name.gguf", url, tmp_path) == tmp_path / Q5[0]


def test_the_hubs_cache_is_looked_at_for_all_shards(hub: Hub, tmp_path: Path) -> None:
    first = hf_hub_download(QWEN, Q5[0], cache_dir=constants.HF_HUB_CACHE)
    assert find_model("qwen2.5-7b-instruct", None, tmp_path) == HubFile(QWEN, Q5[0])
    hf_hub_download(QWEN, Q5[1], cache_dir=constants.HF_HUB_CACHE)
    assert find_model("qwen2.5-7b-instruct", None, tmp_path) == Path(first)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct-q4_1", "smollm2-135m:q4_1", "SmolLM2-135M-Instruct.Q4_1.gguf"])
def test_the_embedded_model_is_found_with_its_quantization_unless_an_address_is_given(
    tmp_path: Path, name: str
) -> None:
    assert find_model(name, None, tmp_path) == locate("smollm2-135m", tmp_path)
    assert isinstance(find_model(name, "https://example.org/x.gguf", tmp_path), WebFile)
    with pytest.raises(StartupError, match="no such model"):
        find_model("smollm2-135m:q8_0", None, tmp_path)


def test_a_name_that_nothing_knows_is_an_error_at_once_with_near_ones(tmp_path: Path) -> None:
    (tmp_path / "my-model-q4_0.gguf").touch()
    with pytest.raises(StartupError, match=r"did you mean my-model-q4_0.gguf"):
        find_model("my-model-q5_0", None, tmp_path)
    with pytest.raises(StartupError, match=r"did you mean qwen2.5-7b-instruct"):
        find_model("qwen2.5-7b-instrct", None, tmp_path)


@pytest.mark.parametrize("model", known_models(), ids=lambda model: model.name)
def test_the_catalogue_is_sound(model: KnownModel) -> None:
    assert model.published(None) is not None, "its default is one of its files"
    assert model.layers > 0
    for file in model.files:
        name = parse_name(file.file)
        assert find(name) is model
        assert name.quantization == file.quantization
        assert shard_names(file.file)[0] == file.file
        assert file.bytes > 10_000_000
    if model.repository is not None:
        assert find_repository(model.repository.upper()) is model
    if model.chat_template is not None:
        assert named_template(model.chat_template)


def test_the_catalogue_has_no_name_twice_and_sizes_grow_with_the_quantization() -> None:
    names = Counter(name for model in known_models() for name in model.names)
    assert max(names.values()) == 1
    for model in known_models():
        sizes = [file.bytes for file in model.files]
        assert sizes == sorted(sizes)


def test_the_catalogue_is_read_as_it_is_written() -> None:
    text = (Path(catalogue.__file__).parent / "catalogue.toml").read_text()
    assert [table["name"] for table in tomllib.loads(text)["model"]] == [model.name for model in known_models()]
