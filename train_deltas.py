"""Training entry of DELTAS: ``python train_deltas.py ...``, or ``torchrun ... train_deltas.py``."""

import sys

from deltas.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
