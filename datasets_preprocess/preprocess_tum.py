"""TUM RGB-D to the processed layout.

    python -m datasets_preprocess.preprocess_tum --tum_dir RAW --output_dir ROOT

RAW holds sequences as they are unpacked, ``rgbd_dataset_freiburg1_desk/{rgb.txt,depth.txt,
groundtruth.txt,rgb/,depth/}``; ``datasets_preprocess.rgbd.tum`` says where they are documented.
Colour, depth and pose belong together by the nearest time, at most 20 ms apart. Images of
freiburg1 and freiburg2 are undistorted, and depth with them. Every sequence becomes a scene.
"""

import argparse
import sys
from pathlib import Path

from datasets_preprocess.rgbd.recording import Recording
from datasets_preprocess.rgbd.scenes import (
    Source,
    preprocess_sources,
    require_folder,
    scene_parser,
)
from datasets_preprocess.rgbd.settings import Settings
from datasets_preprocess.rgbd.tum import read_tum
from datasets_preprocess.scenes import run_command
from dust3r.datasets.tumrgbd import TUMRGBD


def main(argv: list[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = scene_parser("TUM RGB-D to the processed layout, which TUMRGBD reads.")
    parser.add_argument("--tum_dir", type=Path, required=True, help="folder of the sequences")
    return run_command(_run, parser, argv)


def find_sequences(root: Path) -> list[Source]:
    """The sequences right below ``root``: folders with groundtruth.txt."""
    folders = sorted(path.parent for path in root.glob("*/groundtruth.txt"))
    return [Source(path.name, path) for path in folders]


def _run(options: argparse.Namespace) -> str:
    root = require_folder(options.tum_dir, "--tum_dir", "rgbd_dataset_freiburg1_desk/ ...")
    return preprocess_sources(find_sequences(root), _read, options, TUMRGBD)


def _read(source: Source, settings: Settings) -> Recording:
    return read_tum(source.folder, source.name, None, settings.frame_step)


if __name__ == "__main__":
    sys.exit(main())
