"""Exit with 0 if the server of this container takes requests, else 1 with the reason; the images' HEALTHCHECK.

It runs every few seconds, so it imports nothing but the standard library and none of the package. LLM_PORT says where
to ask, LLM_SSL_CERTFILE that it is HTTPS; the certificate is for another name than 127.0.0.1, so it is not checked.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys

TIMEOUT_S = 3.0


def main() -> int:
    """Return 0 for 200 of `/health/ready`."""
    port = int(os.environ.get("LLM_PORT") or 8080)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    if os.environ.get("LLM_SSL_CERTFILE"):
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        print(f"{answer.status} {answer.read(500).decode(errors='replace')}")
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer on 127.0.0.1:{port}: {error}")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
