"""``python -m deltas.compare``: methods of depth from posed frames, side by side."""

import sys

from deltas.compare.cli import main

if __name__ == "__main__":
    sys.exit(main())
