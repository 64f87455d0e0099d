"""ScanNet++ as it is downloaded to the processed layout, with its official split.

    python -m datasets_preprocess.preprocess_scannetpp --scannetpp_dir RAW --output_dir ROOT

RAW is the folder of the release (https://scannetpp.mlsg.cit.tum.de/scannetpp/documentation;
Yeshwanth et al., ICCV 2023), with for each scene in ``data/<scene>``

    scans/mesh_aligned_0.05.ply                       the laser scan's mesh, metres
    dslr/resized_images/DSC00001.JPG                  fisheye photographs
    dslr/resized_anon_masks/DSC00001.png              0 where a person was blurred; may be missing
    dslr/colmap/{cameras,images}.txt                  OPENCV_FISHEYE, poses in the mesh's frame
    dslr/nerfstudio/transforms.json                   marks bad images; the poses where no colmap is
    iphone/rgb/frame_000000.jpg, iphone/rgb_masks     taken out of the video by the release's tools
    iphone/colmap/{cameras,images}.txt                OPENCV

either of dslr and iphone, and ``splits/nvs_sem_train.txt`` and ``nvs_sem_val.txt``. Images are
resampled to a pinhole camera, depth is that of the mesh at the centre of each of its pixels. Where
a person was blurred there is none. COLMAP puts the corner of the first pixel at (0, 0), so half a
pixel is taken from principal points.

Pairs are chosen by measured overlap, or are those that ``--precomputed_pairs`` lists, by the names
of images without suffix: see ``datasets_preprocess.given_pairs``.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from datasets_preprocess.given_pairs import GivenPairs, listed_scenes
from datasets_preprocess.layout import complete_scenes, load_scene, rebuild_metadata, save_scene
from datasets_preprocess.rgbd.recording import Recording
from datasets_preprocess.rgbd.scenes import (
    Source,
    preprocess_sources,
    require_folder,
    scene_parser,
)
from datasets_preprocess.rgbd.settings import Settings
from datasets_preprocess.scannetpp_release import read_scene
from datasets_preprocess.scenes import run_command
from dust3r.datasets.scannetpp import ScanNetpp

_SPLITS = {"train": "nvs_sem_train.txt", "val": "nvs_sem_val.txt"}
_TARGET_RESOLUTION = 920


def main(argv: list[str] | None = None) -> int:
    """Command line entry; 1 after a user's error."""
    return run_command(_run, _parser(), argv)


def find_scenes(root: Path, splits: tuple[str, ...]) -> list[Source]:
    """The scenes of the split's lists in ``root``, or every one in data/ where there is no list.

    Scenes of a list that are not there are no error: few people download all.
    """
    lists = {split: root / "splits" / _SPLITS[split] for split in splits}
    listed = {
        name: split
        for split, file in lists.items()
        if file.is_file()
        for name in file.read_text().split()
    }
    folders = sorted(path for path in (root / "data").iterdir() if path.is_dir())
    if not listed:
        return [Source(folder.name, folder) for folder in folders]
    return [Source(f.name, f, listed[f.name]) for f in folders if f.name in listed]


def _run(options: argparse.Namespace) -> str:
    root = require_folder(options.scannetpp_dir, "--scannetpp_dir", "data/ and splits/")
    require_folder(root / "data", "--scannetpp_dir", "data/<scene>/")
    sources = find_scenes(root, tuple(options.splits))
    listed = listed_scenes(options.precomputed_pairs, [source.name for source in sources])
    if listed is not None:
        sources = [source for source in sources if source.name in listed]
    read = partial(_read, target_resolution=options.target_resolution, listed=listed)
    text = preprocess_sources(sources, read, options, ScanNetpp)
    return text if listed is None else f"{text}\n{_take_listed(options.output_dir, listed)}"


def _read(
    source: Source,
    settings: Settings,
    *,
    target_resolution: int,
    listed: dict[str, GivenPairs] | None,
) -> Recording:
    recording = read_scene(source.folder, source.name, target_resolution, settings.frame_step)
    if listed is not None:
        listed[source.name].keep_listed(recording)
    return recording


def _take_listed(root: Path, listed: dict[str, GivenPairs]) -> str:
    """Put the listed pairs in place of the measured ones, in scenes that have none of them yet."""
    for name in set(complete_scenes(root)) & listed.keys():
        save_scene(root / name, listed[name].among(load_scene(root / name)))
    return f"listed pairs taken: {len(rebuild_metadata(root).pairs)} in all"


def _parser() -> argparse.ArgumentParser:
    parser = scene_parser("ScanNet++ to the processed layout, which ScanNetpp reads.")
    parser.add_argument(
        "--scannetpp_dir", type=Path, required=True, help="folder of data/ and splits/"
    )
    parser.add_argument(
        "--precomputed_pairs", type=Path, help="folder with a list of pairs for each scene"
    )
    parser.add_argument(
        "--target_resolution",
        type=int,
        default=_TARGET_RESOLUTION,
        help="longest side of the images written, in pixels",
    )
    parser.add_argument(
        "--splits", nargs="+", choices=list(_SPLITS), default=list(_SPLITS), help="scenes to make"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
