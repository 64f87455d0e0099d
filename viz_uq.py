"""Plots of depth, its uncertainty and its error, of a checkpoint on a dataset."""

import sys

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.viz import main

if __name__ == "__main__":
    sys.exit(main())
