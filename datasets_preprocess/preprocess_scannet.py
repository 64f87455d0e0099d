"""ScanNet to the processed layout, with its official split.

    python -m datasets_preprocess.preprocess_scannet --scannet_dir RAW --output_dir ROOT

RAW is the release as its downloader leaves it: ``scans/sceneXXXX_XX/sceneXXXX_XX.sens`` and
``scans_test/...``, or the scenes right in RAW; folders ``color``, ``depth``, ``pose`` and
``intrinsic`` that the SensReader exported beside the .sens file are read in its place. The lists
``scannetv2_train.txt``, ``_val.txt`` and ``_test.txt`` of ScanNet's repository (Tasks/Benchmark)
are looked for in ``--splits_dir``. Documented in that repository (Dai et al., CVPR 2017); see
``datasets_preprocess.rgbd.sens`` and ``datasets_preprocess.rgbd.formats``.
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
from datasets_preprocess.scenes import SceneError, run_command
from dust3r.datasets.scannet import ScanNet

_SPLITS = ("train", "val", "test")
_READ = ("scannet", "sens")
_NO_LISTS = (
    "no scannetv2_train.txt, _val.txt or _test.txt: the scenes carry no official split; "
    "give --splits_dir and a new --output_dir to have it"
)


def main(argv: list[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = scene_parser("ScanNet to the processed layout, which ScanNet reads.")
    parser.add_argument(
        "--scannet_dir", type=Path, required=True, help="folder of scans/, or of the scenes"
    )
    parser.add_argument(
        "--splits_dir", type=Path, help="folder of scannetv2_train.txt; by default --scannet_dir"
    )
    return run_command(_run, parser, argv)


def find_scenes(root: Path, splits: dict[str, str]) -> list[Source]:
    """The scenes in ``root`` and in its ``scans`` and ``scans_test``, with their splits."""
    places = [root, root / "scans", root / "scans_test"]
    folders = sorted(path for place in places for path in place.glob("scene*_*") if path.is_dir())
    return [Source(path.name, path, splits.get(path.name, "")) for path in folders]


def read_splits(folder: Path) -> dict[str, str]:
    """The split of each scene's name, as far as there are lists."""
    splits = {}
    for split in _SPLITS:
        file = folder / f"scannetv2_{split}.txt"
        if file.is_file():
            splits |= dict.fromkeys(file.read_text().split(), split)
    return splits


def _run(options: argparse.Namespace) -> str:
    root = require_folder(options.scannet_dir, "--scannet_dir", "scans/ or scene0000_00/ ...")
    splits = read_splits(options.splits_dir or root)
    if options.splits_dir and not splits:
        raise FileNotFoundError(f"--splits_dir {options.splits_dir} has no scannetv2_train.txt")
    report = preprocess_sources(find_scenes(root, splits), _read, options, ScanNet)
    return report if splits else f"{report}\nwarning: {_NO_LISTS}"


def _read(source: Source, settings: Settings) -> Recording:
    for kind in _READ:
        if FORMATS[kind].fits(source.folder):
            return FORMATS[kind].read(source.folder, source.name, None, settings.frame_step)
    raise SceneError("neither a .sens file nor folders color, depth and pose exported from it")


if __name__ == "__main__":
    sys.exit(main())
