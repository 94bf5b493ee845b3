"""What can be known before a model is fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from llm_local.models import obstacle as module
from llm_local.models.obstacle import obstacle
from llm_local.models.source import HubFile, WebFile
from tests.models.conftest import Q5, QWEN

SOURCE = HubFile(QWEN, Q5[0])
OTHER = WebFile("https://example.org/x.gguf", "x.gguf")


def test_a_folder_that_can_be_made_is_no_obstacle(tmp_path: Path) -> None:
    assert obstacle(OTHER, tmp_path / "a/b") is None


def test_offline_only_the_hub_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in (obstacle(SOURCE, tmp_path) or "")
    assert obstacle(OTHER, tmp_path) is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert f"may not write into {tmp_path}/file/" in (obstacle(OTHER, tmp_path / "file/models") or "")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert f"may not write into {tmp_path}/" in (obstacle(OTHER, tmp_path) or "")


def test_a_disk_without_room_for_a_known_model_is_named_and_what_has_come_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 5_444_831_360
    monkeypatch.setattr(module, "shutil", type("Disk", (), {"disk_usage": lambda _: type("Usage", (), {"free": free})}))
    assert "needs 5.4 GB more" in (obstacle(SOURCE, tmp_path) or "")
    assert "needs 5.4 GB more" in (obstacle(HubFile(QWEN), tmp_path) or "")
    assert obstacle(HubFile(QWEN, quantization="Q4_K_M"), tmp_path) is None
    part = tmp_path / ".downloads" / f"{Q5[1]}.0123456789ab.partial"
    part.parent.mkdir()
    with part.open("wb") as file:
        file.truncate(100_000_000)
    assert obstacle(SOURCE, tmp_path) is None
