"""Waymo's Perception set, version 1, to the layout that ``Waymo`` reads.

    python -m datasets_preprocess.preprocess_waymo --waymo_dir DIR --output_dir ROOT

DIR holds the release's files (https://waymo.com/open, Perception, TFRecord format), directly or in
folders below: ``segment-*.tfrecord``, each a segment of 20 s with 5 cameras and 5 lidars at 10 Hz.
Neither TensorFlow nor Waymo's package is needed. Images are undistorted and made smaller; depth is
that of the lidar points which Waymo found in the image, a tenth of the pixels or so. The world is
the vehicle's frame in the segment's first record. Things that move are in it as well.

Without a list of pairs those of measured overlap are taken, between all cameras and times of a
segment; because depth is sparse it is compared in blocks of pixels.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from google.protobuf.message import Message

from datasets_preprocess.indexed_pairs import (
    PairRange,
    ScenePart,
    SceneSource,
    SceneWriter,
    SourceView,
    add_pair_options,
    convert_all,
    listed_folder,
    listed_pairs,
    pair_range,
    write_scene_index,
)
from datasets_preprocess.scenes import SceneReport, run_command
from datasets_preprocess.waymo.records import read_frames, transform
from datasets_preprocess.waymo.sensors import LidarPoints, camera_view, lidar_points
from dust3r.datasets.waymo import Waymo

_MAX_SIDE, _MAX_PAIRS = 512, 5000
_SUFFIX = ".tfrecord"


def main(argv: list[str] | None = None) -> int:
    """Command line entry; 1 after a user's error."""
    return run_command(_run, _parser(), argv)


def _run(options: argparse.Namespace) -> str:
    if options.frame_step < 1 or options.max_side < 16:
        raise ValueError("--frame_step must be at least 1, --max_side at least 16")
    convert = partial(
        _convert,
        wanted=pair_range(options),
        step=1 if options.precomputed_pairs else options.frame_step,
        max_side=options.max_side,
    )
    return convert_all(
        _sources(options.waymo_dir, options.precomputed_pairs),
        convert,
        _write_index,
        lambda root: Waymo(ROOT=root, resolution=(512, 320)),
        options,
        "Waymo",
    )


def _sources(root: Path, pairs_file: Path | None) -> list[SceneSource]:
    listed_folder(root, "--waymo_dir")
    files = sorted(root.rglob(f"*{_SUFFIX}"))
    if not files:
        raise FileNotFoundError(f"{root} has no *{_SUFFIX} file in it or below; download some")
    if pairs_file is None:
        return [SceneSource(path.name.removesuffix(_SUFFIX), path) for path in files]
    by_name = {name: path for path in files for name in (path.name, path.stem)}
    sources = [
        SceneSource(scene, by_name[scene], pairs)
        for scene, pairs in listed_pairs(pairs_file, Waymo.IMAGES_KEY).items()
        if scene in by_name
    ]
    if not sources:
        raise ValueError(f"{pairs_file} has no pair of the {len(files)} segments in {root}")
    return sources


def _convert(
    source: SceneSource, folder: Path, *, wanted: PairRange, step: int, max_side: int
) -> SceneReport:
    writer = SceneWriter(folder, sparse=True)
    to_first = None
    for number, frame in read_frames(source.path, step):
        if to_first is None:
            to_first = np.linalg.inv(transform(frame.pose))
        cameras = {image.name: f"{number:05d}_{image.name}" for image in frame.images}
        cameras = {camera: name for camera, name in cameras.items() if source.wants(name)}
        if not cameras:
            continue
        try:
            lidar = lidar_points(frame)
        except ValueError as error:
            writer.report.skip("unreadable lidar", f"{number:05d} ({error})")
            continue
        for camera, name in cameras.items():
            writer.take(name, partial(_read_view, frame, camera, lidar, name, to_first, max_side))
    return writer.finish(source, wanted)


def _read_view(
    frame: Message,
    camera: int,
    lidar: LidarPoints,
    name: str,
    to_first: np.ndarray,
    max_side: int,
) -> SourceView:
    view = camera_view(frame, camera, lidar, max_side)
    return SourceView(name, {"": view.rgb}, view.depth, view.intrinsics, to_first @ view.pose)


def _write_index(root: Path, parts: list[ScenePart]) -> None:
    scenes = [part.scene for part in parts]
    write_scene_index(root / Waymo.INDEX, parts, scene_names=scenes, images_key=Waymo.IMAGES_KEY)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Waymo's Perception segments to the layout that the data set Waymo reads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--waymo_dir", type=Path, required=True, help="folder of the segments")
    add_pair_options(parser, max_pairs=_MAX_PAIRS)
    parser.add_argument(
        "--max_side", type=int, default=_MAX_SIDE, help="scale down to this longest side, in pixels"
    )
    parser.add_argument(
        "--frame_step",
        type=int,
        default=1,
        help="take every n-th frame, where no list of pairs is given",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
