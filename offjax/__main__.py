"""``python -m offjax``: the command line."""

import sys

from offjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
