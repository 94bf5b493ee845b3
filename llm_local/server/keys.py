"""The API keys and whose they are: those of the settings, and those of a file that can be read again. Event loop.

One key a line; empty lines and lines that begin with `#` are skipped. `name: key` or `name=key` says whose key it is (a
name has letters, digits, `.`, `_` and `-`); a key that has `:` or `=` inside needs a name before it. Two keys with one
name belong to one client, so that an old key can live beside the new one for a while.

Only digests are kept: nothing here could show a key, and comparing takes the same time whatever was sent.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from llm_local.config import Settings
from llm_local.errors import StartupError

log = logging.getLogger(__name__)

# What stands behind the sign must not be padding alone: base64 ends in `=`.
_NAMED = re.compile(r"([\w.-]{1,64})\s*[:=]\s*(?!=*$)(.+)", re.ASCII)


class Keys:
    """The keys that clients may send.

    Args:
        given: keys of the settings, which stay.
        path: a file with more of them.

    Raises:
        StartupError: the file cannot be read, or a line or a setting is no key; the text shows none.
    """

    def __init__(self, given: Iterable[str] = (), path: Path | None = None) -> None:
        self.path = path
        self._given = [(f"key {n}", _digest(key, f"LLM_API_KEYS, key {n}")) for n, key in enumerate(given, 1)]
        self._of_file = self._read()

    @classmethod
    def of(cls, settings: Settings) -> Keys | None:
        """Return the keys of the settings, or None where the server is open.

        Raises:
            StartupError: as above.
        """
        if not settings.api_keys and settings.api_keys_file is None:
            return None
        path = settings.api_keys_file.expanduser() if settings.api_keys_file is not None else None
        return cls(settings.api_keys, path)

    def __len__(self) -> int:
        return len(self._given) + len(self._of_file)

    def owner(self, sent: bytes) -> str | None:
        """Return the name of the key that was sent, or None when there is no such key."""
        digest = hashlib.sha256(sent).digest()
        # Every key is compared, so that the time tells nothing.
        owners = [name for name, known in [*self._given, *self._of_file] if hmac.compare_digest(digest, known)]
        return owners[0] if owners else None

    def reload(self) -> None:
        """Read the file again.

        Raises:
            StartupError: it cannot be used; the keys stay as they were.
        """
        self._of_file = self._read()

    def _read(self) -> list[tuple[str, bytes]]:
        if self.path is None:
            return []
        try:
            with self.path.open(encoding="utf-8") as file:
                lines = file.read().splitlines()
                mode = stat.S_IMODE(self.path.stat().st_mode)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise StartupError(f"cannot read the keys in {self.path} (LLM_API_KEYS_FILE): {reason}") from None
        if mode & stat.S_IROTH:
            log.warning("%s can be read by every user of this machine: chmod 600 (now %o)", self.path, mode)
        keys = [_parse(line.strip(), f"line {n}", self.path) for n, line in enumerate(lines, 1) if _is_key(line)]
        if not keys:
            raise StartupError(f"{self.path} (LLM_API_KEYS_FILE) has no key: write one a line, or unset it")
        return keys


def _is_key(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")


def _parse(line: str, where: str, path: Path) -> tuple[str, bytes]:
    named = _NAMED.fullmatch(line)
    return (named[1] if named else where), _digest(named[2] if named else line, f"{path}, {where}")


def _digest(key: str, where: str) -> bytes:
    if not key.isprintable() or " " in key:
        raise StartupError(f"{where}: a key has spaces or control characters in it, which no header can carry")
    return hashlib.sha256(key.encode()).digest()
