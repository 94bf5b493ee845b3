"""`python -m llm_local`: hands over to the command line."""

import sys

from llm_local.cli import main

if __name__ == "__main__":
    sys.exit(main())
