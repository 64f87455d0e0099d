"""SUN3D to the processed layout.

    python -m datasets_preprocess.preprocess_sun3d --sun3d_dir RAW --output_dir ROOT

RAW holds sequences as they are downloaded, ``<place>/<sequence>/{image,depth,extrinsics}`` with
``intrinsics.txt``, at any depth of folders. Documented by the reader on the data set's page (Xiao
et al., ICCV 2013), and in ``datasets_preprocess.rgbd.formats``: depth has its bits rotated, and
the newest file of extrinsics counts. Every sequence becomes a scene ``<place>_<sequence>``.
"""

import argparse
import sys
from pathlib import Path

from datasets_preprocess.rgbd.formats import FORMATS
from datasets_preprocess.rgbd.recording import Recording
from datasets_preprocess.rgbd.scenes import (
    Source,
    preprocess_sources,
    require_folder,
    scene_parser,
)
from datasets_preprocess.rgbd.settings import Settings
from datasets_preprocess.scenes import run_command
from dust3r.datasets.sun3d import SUN3D


def main(argv: list[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = scene_parser("SUN3D to the processed layout, which SUN3D reads.")
    parser.add_argument("--sun3d_dir", type=Path, required=True, help="folder of the sequences")
    return run_command(_run, parser, argv)


def find_sequences(root: Path) -> list[Source]:
    """Every sequence below ``root``, named by its path from there."""
    folders = sorted(path.parent for path in root.rglob("extrinsics") if path.is_dir())
    return [Source(_name(path, root), path) for path in folders]


def _name(folder: Path, root: Path) -> str:
    return "_".join(folder.relative_to(root).parts) or folder.name


def _run(options: argparse.Namespace) -> str:
    root = require_folder(options.sun3d_dir, "--sun3d_dir", "sequences with image/, depth/ ...")
    return preprocess_sources(find_sequences(root), _read, options, SUN3D)


def _read(source: Source, settings: Settings) -> Recording:
    return FORMATS["sun3d"].read(source.folder, source.name, None, settings.frame_step)


if __name__ == "__main__":
    sys.exit(main())
