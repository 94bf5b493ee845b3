"""Exit with 0 if the server of this container takes requests, else 1 with the reason; the images' HEALTHCHECK.

It runs every few seconds, so it imports nothing but the standard library and none of the package. LLM_HOST and LLM_PORT
say where to ask, LLM_SSL_CERTFILE that it is HTTPS; the certificate may be for another name, so it is not checked.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys

TIMEOUT_S = 3.0


def value(name: str) -> str:
    """Return a variable without the spaces and quotes that `docker run --env-file` keeps, as the server reads it."""
    return os.environ.get(name, "").strip().strip("\"'").strip()


def main() -> int:
    """Return 0 for 200 of `/health/ready`."""
    host, port = value("LLM_HOST"), int(value("LLM_PORT") or 8080)
    if host in ("", "0.0.0.0", "::"):
        host = "127.0.0.1"
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    if value("LLM_SSL_CERTFILE"):
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        print(f"{answer.status} {answer.read(500).decode(errors='replace')}")
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer on {host}:{port}: {error}")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
