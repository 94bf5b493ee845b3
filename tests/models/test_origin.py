"""Models of one file name from different places: never one in place of the other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_local.cli import main
from llm_local.cli.weights import WeightFiles
from llm_local.config import Settings
from llm_local.errors import StartupError
from llm_local.models.find import find_model
from llm_local.models.origin import note_origin
from llm_local.models.progress import Progress
from llm_local.models.pull import Wishes, pull
from llm_local.models.source import HubFile, Source, WebFile
from tests.models.conftest import Waits, weights
from tests.models.hub import Hub

FILE = "x-Q4_0.gguf"
SAYS = r"came from a/x-GGUF, and b/x-GGUF:.* is another model whose file has the same name: name another folder"


@pytest.fixture
def two(hub: Hub) -> Hub:
    """Repositories that call models of the same size alike."""
    for owner in "ab":
        hub.add(f"{owner}/x-GGUF", FILE, weights(owner))
    return hub


@pytest.mark.parametrize("name", [f"b/x-GGUF:{FILE}", "b/x-GGUF:q4_0", "https://huggingface.co/b/x-GGUF"])
def test_a_second_model_of_the_same_file_name_is_refused_and_the_first_stays(
    two: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / "models"
    assert main(["pull", f"a/x-GGUF:{FILE}", "--models-dir", str(folder)]) == 0
    capsys.readouterr()
    assert main(["pull", name, "--models-dir", str(folder)]) == 2
    assert "came from a/x-GGUF, and b/x-GGUF:" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(StartupError, match="came from a/x-GGUF, and b/x-GGUF:"):
        WeightFiles(Settings(model=name, models_dir=folder))
    assert (folder / FILE).read_bytes() == weights("a")
    assert main(["pull", f"A/X-GGUF:{FILE}", "--models-dir", str(folder)]) == 0, "the hub's names have no case"
    assert main(["pull", name, "--models-dir", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / FILE).read_bytes() == weights("b")


def test_a_repository_alone_may_publish_the_name_of_another_ones_file(two: Hub, tmp_path: Path, waits: Waits) -> None:
    two.add("b/other", FILE, weights("c"))
    pull(HubFile("a/x-GGUF", FILE), Wishes(tmp_path), waits.patience(), Progress())
    source = find_model("b/other:default", None, tmp_path)
    assert source == HubFile("b/other", "default")
    with pytest.raises(StartupError, match=r"came from a/x-GGUF, and b/other:default is another model"):
        pull(HubFile("b/other"), Wishes(tmp_path), waits.patience(), Progress())


@pytest.mark.parametrize(
    ("was", "asked", "same"),
    [
        (HubFile("a/x-GGUF", FILE), f"a/x-GGUF:{FILE}", True),
        (HubFile("a/x-GGUF", FILE), f"https://huggingface.co/a/x-GGUF/resolve/v2/{FILE}", True),
        (HubFile("a/x-GGUF", FILE), f"https://files.test/{FILE}", False),
        (WebFile(f"https://files.test/{FILE}?signature=old", FILE), f"https://files.test/{FILE}?signature=new", True),
        (WebFile(f"https://files.test/v1/{FILE}", FILE), f"https://files.test/v2/{FILE}", False),
    ],
)
def test_a_file_is_the_one_of_where_it_came_from(tmp_path: Path, was: Source, asked: str, same: bool) -> None:
    path = tmp_path / FILE
    path.write_bytes(weights("x"))
    (tmp_path / ".downloads").mkdir()
    note_origin(path, was)
    if same:
        assert find_model(asked, None, tmp_path) == path
    else:
        with pytest.raises(StartupError, match="is another model"):
            find_model(asked, None, tmp_path)
        with pytest.raises(StartupError, match="is another model"):
            find_model("", asked, tmp_path)


def test_a_file_is_not_served_in_place_of_what_its_new_address_has(
    two: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def address(owner: str) -> str:
        return f"https://huggingface.co/{owner}/x-GGUF/resolve/main/{FILE}"

    folder = tmp_path / "models"
    first = Settings(model=FILE, model_url=address("a"), models_dir=folder)
    assert WeightFiles(first).get().model == WeightFiles(first).get().model == folder / FILE
    second = first.model_copy(update={"model_url": address("b")})
    says = rf"{FILE} came from a/x-GGUF, and LLM_MODEL_URL is b/x-GGUF:{FILE} now: remove the file .* or unset"
    with pytest.raises(StartupError, match=says):
        WeightFiles(second)
    for name, value in (("MODEL", FILE), ("MODEL_URL", address("b")), ("MODELS_DIR", str(folder))):
        monkeypatch.setenv(f"LLM_{name}", value)
    assert main(["doctor"]) == 1
    assert "would not start" in (said := capsys.readouterr().out)
    assert "LLM_MODEL_URL is b/x-GGUF" in " ".join(said.split())
    assert WeightFiles(second.model_copy(update={"model_url": None})).get().model == folder / FILE
    assert (folder / FILE).read_bytes() == weights("a")
    (folder / FILE).unlink()
    assert WeightFiles(second).get().model.read_bytes() == weights("b")


def test_what_was_put_there_by_hand_is_what_it_is_called(two: Hub, tmp_path: Path, waits: Waits) -> None:
    pull(HubFile("a/x-GGUF", FILE), Wishes(tmp_path), waits.patience(), Progress())
    asked = f"b/x-GGUF:{FILE}"
    with pytest.raises(StartupError, match=SAYS):
        find_model(asked, None, tmp_path)
    (tmp_path / FILE).write_bytes(weights("b"))
    os.utime(tmp_path / FILE, ns=(1, 1))
    assert find_model(asked, None, tmp_path) == tmp_path / FILE
    note = tmp_path / ".downloads" / f"{FILE}.origin"
    for text in ("", "[]", "{}", '{"from": 1}', "\xff"):
        note.write_text(text)
        assert find_model(asked, None, tmp_path) == tmp_path / FILE
    note.unlink()
    assert find_model(asked, None, tmp_path) == tmp_path / FILE
