"""ARKitScenes as it is downloaded to the layout that ``ARKitScenes`` reads.

    python -m datasets_preprocess.preprocess_arkitscenes --arkitscenes_dir RAW --output_dir ROOT

RAW is the folder of the raw release (https://github.com/apple/ARKitScenes, DATA.md and
raw/README.md), with for each video in ``Training/<video>`` and ``Validation/<video>``

    vga_wide/<video>_<seconds>.png                    640x480, 30 a second
    vga_wide_intrinsics/<video>_<seconds>.pincam      width height fx fy cx cy, pixels
    lowres_depth/<video>_<seconds>.png                256x192, 16 bits, millimetres, 60 a second
    lowres_wide.traj                                  seconds, axis-angle, translation: world to
                                                      camera, z up, metres, 10 a second

An image takes the depth map nearest in time, within a hundredth of a second, and the pose between
those before and after it. Depth is brought to the image's size, interpolated within surfaces.
Principal points are taken as Apple states them, the first pixel's centre at (0, 0). The tablet was
held in any way: all images of a video are turned by the same quarter turns to have the sky up.

Written are ``Training`` and, from Validation, ``Test``: ``<video>/vga_wide/*.jpg``,
``<video>/lowres_depth/*.png``, ``<video>/scene_metadata.npz`` (images, intrinsics, trajectories,
pairs) and ``all_metadata.npz`` over all videos. Pairs are chosen by measured overlap, or are those
that ``--precomputed_pairs`` lists: see ``datasets_preprocess.given_pairs``.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np

from datasets_preprocess.arkitscenes_release import DEPTH, IMAGES, TRAJECTORY, read_scene
from datasets_preprocess.check import check_written
from datasets_preprocess.given_pairs import GivenPairs, listed_scenes
from datasets_preprocess.layout import SCENE_FILE, SceneData, load_scene, write_metadata
from datasets_preprocess.rgbd.convert import Workers, write_scene
from datasets_preprocess.rgbd.scenes import (
    DEFAULT_MAX_PAIRS,
    Source,
    require_folder,
    scene_parser,
)
from datasets_preprocess.rgbd.settings import Settings, chosen
from datasets_preprocess.scenes import SceneReport, preprocess_scenes, run_command
from dust3r.datasets.arkitscenes import HELD_OUT, TRAINING, ARKitScenes
from dust3r.utils.files import atomic_path
from dust3r.utils.npz import load_arrays

SCENE_METADATA = "scene_metadata.npz"

# Three images a second: neighbours of thirty a second show the same.
_FRAME_STEP = 10
_WRITTEN_AS = {TRAINING: TRAINING, **dict.fromkeys(HELD_OUT, HELD_OUT[0])}
_SPLITS = {TRAINING: "train", HELD_OUT[0]: "test"}
_SIZE = (512, 384)


def main(argv: list[str] | None = None) -> int:
    """Command line entry; 1 after a user's error."""
    return run_command(_run, _parser(), argv)


def find_scenes(root: Path) -> list[Source]:
    """The videos in ``root``, named '<part>/<video>' as they are written."""
    return [
        Source(f"{written}/{trajectory.parent.name}", trajectory.parent, _SPLITS[written])
        for part, written in _WRITTEN_AS.items()
        for trajectory in sorted((root / part).glob(f"*/{TRAJECTORY}"))
    ]


def _run(options: argparse.Namespace) -> str:
    root = require_folder(options.arkitscenes_dir, "--arkitscenes_dir", "Training/ or Validation/")
    sources = find_scenes(root)
    if not sources:
        raise FileNotFoundError(
            f"--arkitscenes_dir {root} has no {TRAINING}/<video>/{TRAJECTORY}, nor one in "
            f"{' or '.join(HELD_OUT)}"
        )
    listed = listed_scenes(options.precomputed_pairs, [source.name for source in sources])
    if listed is not None:
        sources = [source for source in sources if source.name in listed]
    out = options.output_dir
    report = preprocess_scenes(
        sources,
        partial(_convert, settings=chosen(options), listed=listed),
        out,
        name=attrgetter("name"),
        num_workers=options.num_workers,
        description="ARKitScenes",
    )
    parts = {part: _finished(out / part) for part in _SPLITS}
    if not any(parts.values()):
        raise ValueError(f"no scene could be made. {report.summary()}")
    for part, scenes in parts.items():
        if scenes:
            write_metadata(out / part, scenes)
    written = ARKitScenes(split="all", ROOT=out, resolution=_SIZE, seed=0)
    warnings = check_written(written, out, "ARKitScenes")
    return "\n".join([report.summary(), *(f"warning: {warning}" for warning in warnings)])


def _convert(
    source: Source,
    folder: Path,
    *,
    settings: Settings,
    listed: dict[str, GivenPairs] | None,
) -> SceneReport:
    recording = read_scene(source.folder, source.folder.name, settings.frame_step)
    if listed is not None:
        listed[source.name].keep_listed(recording)
    with Workers(1) as workers:
        report = write_scene(folder, recording, settings, workers)
    scene = load_scene(folder)
    if listed is not None:
        scene = listed[source.name].among(scene)
    with atomic_path(folder / SCENE_METADATA) as temporary:
        np.savez_compressed(
            temporary,
            # Data prepared by DUSt3R's scripts has names of images as the release has them.
            images=np.array([f"{image}.png" for image in scene.images]),
            intrinsics=scene.intrinsics.astype(np.float32),
            trajectories=scene.poses.astype(np.float32),
            pairs=scene.pairs,
        )
    (folder / SCENE_FILE).unlink()
    (folder / "images").rename(folder / IMAGES)
    (folder / "depth").rename(folder / DEPTH)
    return SceneReport(report.frames, len(scene.pairs), report.skipped, report.examples)


def _finished(folder: Path) -> Sequence[SceneData]:
    """The finished videos of a part."""
    scenes = []
    for path in sorted(folder.glob(f"*/{SCENE_METADATA}")):
        stored = load_arrays(path, ("images", "intrinsics", "trajectories", "pairs"))
        scene = SceneData(
            path.parent.name,
            stored["images"].tolist(),
            stored["intrinsics"],
            stored["trajectories"],
            np.zeros((0, 3)),
        )
        pairs = np.asarray(stored["pairs"], np.float64)
        if pairs.shape[1] == 2:
            pairs = np.concatenate([pairs, np.ones((len(pairs), 1))], 1)
        scenes.append(replace(scene, pairs=pairs[:, :3]))
    return scenes


def _parser() -> argparse.ArgumentParser:
    parser = scene_parser(
        "ARKitScenes to the layout that ARKitScenes reads.",
        Settings(max_pairs=DEFAULT_MAX_PAIRS, frame_step=_FRAME_STEP),
    )
    parser.add_argument(
        "--arkitscenes_dir", type=Path, required=True, help="folder of Training/ and Validation/"
    )
    parser.add_argument(
        "--precomputed_pairs", type=Path, help="folder with a list of pairs for each video"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
