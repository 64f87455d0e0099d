"""WildRGB-D, as it is downloaded and unpacked, to the layout that ``WildRGBD`` reads.

    python -m datasets_preprocess.preprocess_wildrgbd --wildrgbd_dir RAW --output_dir ROOT

The release's format is documented at https://github.com/wildrgbd/wildrgbd (README, "Dataset
format"): ``<category>/scenes/scene_NNN`` holds ``rgb``, ``depth`` (uint16 millimetres) and
``masks``, each ``NNNNN.png``, ``cam_poses.txt`` (in each line a frame's number and the 16 numbers
of its camera-to-world matrix in OpenCV's axes) and ``metadata``, JSON with the image's ``w`` and
``h`` and the intrinsics ``K``, nine numbers column by column. ``<category>/camera_eval_list.json``
names the scenes of 'train' and 'val'; the latter become the test split here. Where it is missing a
tenth of the scenes, by a hash of their names, are held out.
"""

import argparse
import json
import sys
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from datasets_preprocess.layout import write_depth, write_image
from datasets_preprocess.object_sequences import (
    SPLITS,
    Category,
    FrameError,
    Item,
    ObjectFrame,
    add_arguments,
    choose,
    convert_frames,
    run,
    write_camera,
    write_mask,
)
from datasets_preprocess.scenes import SceneError, SceneReport, run_command
from dust3r.datasets.held_out import held_out_scenes
from dust3r.datasets.wildrgbd import WildRGBD
from dust3r.utils.image import read_depth_png, read_rgb

_SCENES, _EVALUATION = "scenes", "camera_eval_list.json"
_POSES, _METADATA = "cam_poses.txt", "metadata"


def main(argv: list[str] | None = None) -> int:
    """Command line entry; 0, or 1 after a user's error."""
    return run_command(_run, _parser(), argv)


def _run(options: argparse.Namespace) -> str:
    return run(
        options,
        options.wildrgbd_dir,
        _SCENES,
        partial(_read_category, options=options),
        partial(_convert, img_size=options.img_size),
        WildRGBD,
        "metadata",
    )


def _read_category(category: str, *, options: argparse.Namespace) -> Category:
    folder = options.wildrgbd_dir / category
    scenes = sorted(path.name for path in (folder / _SCENES).iterdir() if path.is_dir())
    held_out = _held_out(folder, scenes)
    items, splits = [], {}
    for split in SPLITS:
        names = [name for name in scenes if (name in held_out) == (split == "test")]
        chosen = choose(names, options.num_sequences_per_object, options.seed)
        # Which frames there are only the scene itself tells: all that were written.
        splits[split] = {f"{_SCENES}/{name}": None for name in chosen}
        items += [Item(folder, category, sequence) for sequence in splits[split]]
    return Category(items, splits)


def _held_out(folder: Path, scenes: list[str]) -> set[str]:
    """Names of the scenes to test on."""
    file = folder / _EVALUATION
    if not file.is_file():
        return {name for name, out in zip(scenes, held_out_scenes(scenes), strict=True) if out}
    listed = json.loads(file.read_text())
    if not isinstance(listed, dict) or not isinstance(listed.get("val"), list):
        raise ValueError(f"{file}: expected {{'train': [scene, ...], 'val': [scene, ...]}}")
    return {Path(str(name)).name for name in listed["val"]}


def _convert(item: Item, folder: Path, *, img_size: int) -> SceneReport:
    source = item.folder / item.sequence
    return convert_frames(
        _read_poses(source / _POSES),
        itemgetter(0),
        partial(_load, source=source, intrinsics=_read_intrinsics(source / _METADATA)),
        partial(_write, folder=folder),
        img_size,
    )


def _read_poses(path: Path) -> list[tuple[int, np.ndarray]]:
    """Frame numbers and poses (4, 4), camera-to-world."""
    rows = np.loadtxt(path, ndmin=2)
    if rows.shape[1] != 17:
        raise SceneError(f"{path} has {rows.shape[1]} numbers in a line, expected 17")
    return [(int(row[0]), row[1:].reshape(4, 4)) for row in rows]


def _read_intrinsics(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Intrinsics (3, 3), and the (height, width) of the images that they are for."""
    stored = json.loads(path.read_text())
    return np.array(stored["K"], float).reshape(3, 3).T, (int(stored["h"]), int(stored["w"]))


def _load(
    frame: tuple[int, np.ndarray],
    *,
    source: Path,
    intrinsics: tuple[np.ndarray, tuple[int, int]],
) -> ObjectFrame:
    number, pose = frame
    name = f"{number:05d}.png"
    rgb = read_rgb(source / "rgb" / name)
    matrix, size = intrinsics
    if rgb.shape[:2] != size:
        raise FrameError(f"the image is not of the metadata's size {size[1]}x{size[0]}")
    depth = read_depth_png(source / "depth" / name)
    mask = read_rgb(source / "masks" / name)[..., 0]
    return ObjectFrame(rgb, depth, mask, matrix, pose)


def _write(number: int, frame: ObjectFrame, *, folder: Path) -> None:
    name = f"{number:05d}"
    write_image(folder / "rgb" / f"{name}.jpg", frame.rgb)
    write_depth(folder / "depth" / f"{name}.png", frame.depth)
    write_mask(folder / "masks" / f"{name}.png", frame.mask)
    write_camera(folder / "metadata" / f"{name}.npz", frame)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="WildRGB-D to the layout that WildRGBD reads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(parser, "wildrgbd_dir")
    return parser


if __name__ == "__main__":
    sys.exit(main())
