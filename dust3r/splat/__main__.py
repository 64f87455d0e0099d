"""``python -m dust3r.splat``."""

import sys

from dust3r.splat.cli import main

if __name__ == "__main__":
    sys.exit(main())
