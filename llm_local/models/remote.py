"""A file that can be fetched: its address, and what is known of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from llm_local.address import shown

BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be other ones later."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to be fetched.

    Attributes:
        name: here, without a folder.
        headers: for the request, such as the hub's token.
        size: in bytes; None where the server does not say.
        sha256: what the server publishes, in hex; None where it does not.
        version: changes when the bytes do (an ETag, a date), so that bytes of two versions are never joined.
    """

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    size: int | None = None
    sha256: str | None = None
    version: str = ""

    @property
    def partial_name(self) -> str:
        """Name of the file for bytes that have come: another one for each version.

        An address that is signed anew has another query; with an ETag it is still known for the same file's.
        """
        address = shown(self.url) if self.version.startswith('"') else self.url
        identity = self.sha256 or f"{address} {self.version} {self.size}"
        return f"{self.name}.{hashlib.sha256(identity.encode()).hexdigest()[:12]}.partial"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a busy server asks to wait, None where it does not say."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
