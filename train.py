"""Training entry: ``python train.py ...`` or ``torchrun --nproc_per_node=N train.py ...``."""

import sys

import mast3r.losses  # noqa: F401  (registers the matching losses)
import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
