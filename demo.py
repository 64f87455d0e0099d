"""Photographs in, a 3-D reconstruction and its uncertainty out: a page, or files on disk."""

import sys

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
