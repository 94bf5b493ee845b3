"""HTTPS: certificate and key, checked before the model is loaded, and read again while it serves. Main thread."""

from __future__ import annotations

import ssl
from pathlib import Path

from llm_local.config import Settings
from llm_local.errors import StartupError


class Tls:
    """The certificate of the server.

    Args:
        certificate: PEM, the server's own first, then those that signed it.
        key: PEM, without a password; None where it is in the same file.

    Raises:
        StartupError: a file is missing or damaged, or the key is not the certificate's.
    """

    def __init__(self, certificate: Path, key: Path | None = None) -> None:
        self._certificate, self._key = certificate, key
        self.context = self._load()

    @classmethod
    def of(cls, settings: Settings) -> Tls | None:
        """Return what the settings say, or None where the server speaks plain HTTP.

        Raises:
            StartupError: as above.
        """
        if settings.ssl_certfile is None:
            return None
        key = settings.ssl_keyfile
        return cls(settings.ssl_certfile.expanduser(), key.expanduser() if key is not None else None)

    def reload(self) -> None:
        """Read the files again, for the connections that come.

        Raises:
            StartupError: they cannot be used; the certificate stays as it was.
        """
        self._load()  # A bad pair must not get into the context that serves.
        self.context.load_cert_chain(self._certificate, self._key, password=_no_password)

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        for path in (self._certificate, self._key):
            if path is not None:
                _check_readable(path)
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except _Encrypted:
            raise StartupError(f"{self._key or self._certificate} has a password: remove it (openssl pkey)") from None
        except ssl.SSLError as error:
            raise StartupError(self._explain(error)) from None
        return context

    def _explain(self, error: ssl.SSLError) -> str:
        key = self._key or self._certificate
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{key} is not the key of {self._certificate} (LLM_SSL_KEYFILE, LLM_SSL_CERTFILE)"
        where = f"{self._certificate} and {self._key}" if self._key is not None else str(self._certificate)
        why = error.reason.replace("_", " ").lower() if error.reason else "no PEM certificate and key in it"
        return f"cannot use {where} (LLM_SSL_CERTFILE, LLM_SSL_KEYFILE) for HTTPS: {why}"


class _Encrypted(Exception):
    """OpenSSL asks for a password."""


def _no_password() -> str:
    raise _Encrypted


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise StartupError(f"cannot read {path} (LLM_SSL_CERTFILE, LLM_SSL_KEYFILE): {error.strerror}") from None
