"""`python -m llm_local`: hands over to the command line."""

import signal
import sys

if __name__ == "__main__":
    # The first process of a container has no default action for this signal: without a handler, `docker stop` would
    # wait for a start, or a download, to end. `serve` sets its own when it runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from llm_local.cli import main

    sys.exit(main())
