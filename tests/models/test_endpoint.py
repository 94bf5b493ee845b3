"""HF_ENDPOINT as people write it, in processes of their own: huggingface_hub reads it when it is imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_local.errors import StartupError
from llm_local.models.endpoint import check_endpoint
from tests.models.conftest import environment, start
from tests.models.hub import Hub
from tests.models.test_commands import NAME, finish

WRONG = {
    "not a url": "does not begin with https://",
    "http://": "is no address",
    "ftp://x": "does not begin with https://",
    "hf-mirror.test": "does not begin with https://",
    "http://[::1": "is no address (Invalid IPv6 URL)",
    "http://mirror.test:port": "is no address (Port could not be cast",
    "https://mirror.test/?token=secret": "has more than a host and a path",
}


@pytest.mark.parametrize(("address", "says"), WRONG.items(), ids=WRONG)
def test_what_is_no_address_is_said_in_one_line(address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(StartupError) as error:
        check_endpoint()
    text = str(error.value)
    assert text.startswith(f"HF_ENDPOINT is '{address.partition('?')[0]}")
    assert says in text
    assert text.endswith("or unset it")
    assert "secret" not in text


@pytest.mark.parametrize(
    "address", ["https://huggingface.co", "https://mirror.test/a/path/", "http://me:secret@mirror.test:8080"]
)
def test_a_mirror_may_have_a_path_and_a_login(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    check_endpoint()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["pull", NAME], ["models"], ["serve", "--port", "0", "--model", NAME]])
def test_a_wrong_endpoint_is_one_line_and_exit_2_in_every_command(hub: Hub, tmp_path: Path, command: list[str]) -> None:
    for address in ("http://[::1", "not a url"):
        code, out, err = finish(start(command, environment(hub, tmp_path, HF_ENDPOINT=address)))
        assert (code, out) == (2, "")
        assert [line for line in err.splitlines() if " INFO " not in line] == [err.splitlines()[-1]]
        assert err.splitlines()[-1].startswith(f"llm-local: error: HF_ENDPOINT is '{address}', which ")


@pytest.mark.slow
def test_an_empty_endpoint_is_none_and_a_login_stays_out_of_messages(hub: Hub, tmp_path: Path) -> None:
    code, _, err = finish(start(["models"], environment(hub, tmp_path, HF_ENDPOINT="")))
    assert (code, err) == (0, "")
    behind = hub.url.replace("//", "//me:secret@")
    code, _, err = finish(start(["pull", "some/thing:q4_0"], environment(hub, tmp_path, HF_ENDPOINT=behind)))
    assert (code, "secret" in err) == (2, False)
    assert f"there is no repository some/thing at {hub.url}, " in err
    assert err.rstrip().endswith("or HF_ENDPOINT is no hub")


@pytest.mark.parametrize("empty", ["", "  "])
def test_the_hub_never_hears_of_an_empty_endpoint(monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", empty)
    check_endpoint()
    assert "HF_ENDPOINT" not in os.environ
