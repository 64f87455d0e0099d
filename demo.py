"""Photographs in, a 3-D reconstruction and its uncertainty out: a page, or files on disk."""

import sys

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.demo import cli
from dust3r.demo.dense import DenseAlignment
from mast3r.demo.sparse import SparseAlignment

METHODS = (DenseAlignment, SparseAlignment)


def main(given: list[str] | None = None) -> int:
    """The exit status of the command line ``given``, or of this process's own."""
    return cli.main(METHODS, given)


if __name__ == "__main__":
    sys.exit(main())
