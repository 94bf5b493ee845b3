"""Addresses in messages: what lets others in is not in them."""

from __future__ import annotations

import re

_USER = re.compile(r"^([^/?#]*//)[^/?#]*@")


def shown(address: str) -> str:
    """Return an address without name, password and query, with which others could fetch it, too. Any text is taken."""
    bare, query, _ = address.partition("#")[0].partition("?")
    return _USER.sub(r"\1", bare) + (f"{query}..." if query else "")
