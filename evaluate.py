"""Tables of uncertainty, depth and camera poses: how good a checkpoint is, by one protocol."""

import sys

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.evaluation import cli
from mast3r.pipeline import reconstruct_sparse


def main(given: list[str] | None = None) -> int:
    """The exit status of the command line ``given``, or of this process's own."""
    return cli.main(given, aligners={"sparse": reconstruct_sparse})


if __name__ == "__main__":
    sys.exit(main())
