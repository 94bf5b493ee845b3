"""Certificates: what cannot be used is one line, and a broken one replaces nothing."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from llm_local import config
from llm_local.cli.tls import Tls
from llm_local.errors import StartupError


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def pair(authority: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return certificate, key


def handshake(tls: Tls, authority: trustme.CA) -> bytes:
    """Return the certificate that a client gets."""
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(back, there, server_hostname="127.0.0.1")
    server = tls.context.wrap_bio(there, back, server_side=True)
    for side in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    got = client.getpeercert(binary_form=True)
    assert got is not None
    return got


def test_a_pair_of_files_serves_and_another_takes_its_place(tmp_path: Path, authority: trustme.CA) -> None:
    certificate, key = pair(authority, tmp_path, "a")
    tls = Tls(certificate, key)
    first = handshake(tls, authority)
    assert first == handshake(tls, authority)
    newer, newer_key = pair(authority, tmp_path, "b")
    newer.replace(certificate)
    with pytest.raises(StartupError, match="is not the key of"):
        tls.reload()
    assert handshake(tls, authority) == first
    newer_key.replace(key)
    tls.reload()
    assert handshake(tls, authority) != first


def test_certificate_and_key_may_be_in_one_file(tmp_path: Path, authority: trustme.CA) -> None:
    certificate, key = pair(authority, tmp_path, "a")
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    handshake(Tls(both), authority)


def locked(key: Path) -> bytes:
    plain = load_pem_private_key(key.read_bytes(), None)
    return plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sesame"))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("a missing certificate", r"cannot read .*none.crt .LLM_SSL_CERTFILE, LLM_SSL_KEYFILE.: No such file"),
        ("a missing key", r"cannot read .*none.key .*: No such file"),
        ("a folder", "cannot read .*: Is a directory"),
        ("the key of another", "b.key is not the key of .*a.crt"),
        ("no PEM", "cannot use .*text.pem and .*a.key .* for HTTPS"),
        ("a certificate without a key", "cannot use .*a.crt .* for HTTPS"),
        ("a key with a password", "has a password: remove it"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(tmp_path: Path, authority: trustme.CA, kind: str, says: str) -> None:
    certificate, key = pair(authority, tmp_path, "a")
    _, other = pair(authority, tmp_path, "b")
    (tmp_path / "text.pem").write_text("hello")
    (tmp_path / "locked.key").write_bytes(locked(key))
    arguments: dict[str, tuple[Path, Path | None]] = {
        "a missing certificate": (tmp_path / "none.crt", key),
        "a missing key": (certificate, tmp_path / "none.key"),
        "a folder": (tmp_path, key),
        "the key of another": (certificate, other),
        "no PEM": (tmp_path / "text.pem", key),
        "a certificate without a key": (certificate, None),
        "a key with a password": (certificate, tmp_path / "locked.key"),
    }
    with pytest.raises(StartupError, match=says) as caught:
        Tls(*arguments[kind])
    assert "\n" not in str(caught.value)


def test_the_settings_say_which_files(tmp_path: Path, authority: trustme.CA) -> None:
    certificate, key = pair(authority, tmp_path, "a")
    chosen = config.load({}, {"LLM_SSL_CERTFILE": str(certificate), "LLM_SSL_KEYFILE": str(key)}).settings
    tls = Tls.of(chosen)
    assert tls is not None
    handshake(tls, authority)
    assert Tls.of(config.load({}, {}).settings) is None
    with pytest.raises(StartupError, match="ssl_keyfile needs ssl_certfile"):
        config.load({}, {"LLM_SSL_KEYFILE": str(key)})
