"""Formats as patterns (Rust): of the names of properties, which engines know by patterns only. Any thread.

Each matches less than its format where that is simpler: no 29 February, no quoted mailboxes.
"""

from __future__ import annotations

# Dates that Python and JavaScript read, too: no year 0.
YEAR = r"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
DAY = (
    rf"(?:{YEAR}-(?:(?:0[13-9]|1[0-2])-[0-9]{{2}}|02-(?:[01][0-9]|2[0-8]))"
    rf"|{_LEAP}-02-29)"
)
"""29 February in leap years alone; of other months' ends it knows nothing."""

_DATE = (
    rf"{YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_HOUR_MINUTE = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR_MINUTE}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_HOUR_MINUTE})"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{1,4}}"
_ATOM = r"[A-Za-z0-9_+-]{1,30}"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9a-fA-F]"

NAME_PATTERNS = {
    "uuid": f"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$",
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "ipv4": rf"^{_BYTE}(?:\.{_BYTE}){{3}}$",
    "hostname": f"^{_HOST}$",
    "email": rf"^{_ATOM}(?:\.{_ATOM}){{0,3}}@{_HOST}$",
    "uri": rf"^https?://{_HOST}(?:/[A-Za-z0-9._-]{{0,60}}){{0,9}}$",
}
