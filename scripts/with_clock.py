"""Run a command and say every half minute that it still runs: `with_clock.py COMMAND ARG...`."""

from __future__ import annotations

import subprocess
import sys
import time

EVERY_S = 30


def main() -> int:
    """Return the command's exit code."""
    began = time.monotonic()
    process = subprocess.Popen(sys.argv[1:])
    while True:
        try:
            return process.wait(EVERY_S)
        except subprocess.TimeoutExpired:
            print(f"  still working, {time.monotonic() - began:.0f} s so far", flush=True)
        except KeyboardInterrupt:
            process.terminate()
            return process.wait()


if __name__ == "__main__":
    sys.exit(main())
