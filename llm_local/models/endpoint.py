"""HF_ENDPOINT: checked before huggingface_hub is imported, which reads it then, and breaks where it is wrong."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from llm_local.address import shown
from llm_local.errors import StartupError

VARIABLE = "HF_ENDPOINT"


def check_endpoint() -> None:
    """See to it that the hub's address is one; an empty one is the same as none, as of our own variables.

    A mirror may have a path and a login.

    Raises:
        StartupError: it is no address.
    """
    address = os.environ.get(VARIABLE)
    if address is None:
        return
    if not address.strip():
        del os.environ[VARIABLE]
    elif (wrong := _wrong(address)) is not None:
        raise StartupError(
            f"{VARIABLE} is '{shown(address)}', which {wrong}: set it to the address of a mirror of the hub, such as "
            f"https://huggingface.co, or unset it"
        )


def _wrong(address: str) -> str | None:
    """Return what is wrong with an address, None where nothing is."""
    try:
        parts = urlsplit(address)
        named, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is no address ({error})"
    if parts.scheme not in ("http", "https"):
        return "does not begin with https:// or http://"
    if not named or re.search(r"\s", address):
        return "is no address"
    return "has more than a host and a path" if parts.query or parts.fragment else None
