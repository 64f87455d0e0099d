"""BlendedMVS, BlendedMVS+ and BlendedMVS++ to the layout that ``BlendedMVS`` reads.

    python -m datasets_preprocess.preprocess_blendedmvs --blendedmvs_dir DIR --output_dir ROOT

DIR holds the projects as they come out of the archives (https://github.com/YoYo000/BlendedMVS,
low resolution or high), directly or in folders of the sets:

    <project: 24 hexadecimal digits>/blended_images/00000000.jpg     and _masked.jpg, not used
    <project>/rendered_depth_maps/00000000.pfm                       z, unit of the project
    <project>/cams/00000000_cam.txt                                  world-to-camera, intrinsics

Camera files are MVSNet's (https://github.com/YoYo000/MVSNet): after the word "extrinsic" a 4x4
world-to-camera matrix, after "intrinsic" a 3x3 one, then a line about depth, which is not used
because it is wrong in places. MVSNet puts the centre of the first pixel at (0.5, 0.5), so half a
pixel is taken from the principal point. Without a list of pairs those of measured overlap are
taken: ``cams/pair.txt`` lists at most ten views for each, by an angle that suits stereo.
"""

import argparse
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from datasets_preprocess.indexed_pairs import (
    PairRange,
    ScenePart,
    SceneSource,
    SceneWriter,
    SourceView,
    add_pair_options,
    convert_all,
    listed_folder,
    pair_range,
)
from datasets_preprocess.scenes import SceneError, SceneReport, run_command
from dust3r.datasets.blendedmvs import PAIRS, BlendedMVS, image_name, scene_name
from dust3r.datasets.indexed_pairs import load_records
from dust3r.utils.files import atomic_path
from dust3r.utils.image import read_rgb

_HALF_PIXEL = 0.5
_DIGITS = 24


def main(argv: list[str] | None = None) -> int:
    """Command line entry; 1 after a user's error."""
    return run_command(_run, _parser(), argv)


def read_pfm(path: Path) -> np.ndarray:
    """A PFM file's map (H, W) float32, top row first.

    Raises FileNotFoundError where it is missing, ValueError where it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.float32 or values.ndim != 2:
        raise ValueError(f"{path} is damaged or no PFM file of one channel")
    return values


def read_camera_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (3, 3), as in the file, and world-to-camera (4, 4) of an MVSNet camera file."""
    words = path.read_text().split()
    try:
        start, middle = words.index("extrinsic") + 1, words.index("intrinsic") + 1
        extrinsic = np.array(words[start : start + 16], float).reshape(4, 4)
        intrinsic = np.array(words[middle : middle + 9], float).reshape(3, 3)
    except ValueError as error:
        raise ValueError(f"{path} is no camera file of MVSNet ({error})") from error
    return intrinsic, extrinsic


def _run(options: argparse.Namespace) -> str:
    return convert_all(
        _sources(options.blendedmvs_dir, options.precomputed_pairs),
        partial(_convert, wanted=pair_range(options)),
        _write_index,
        lambda root: BlendedMVS(ROOT=root, resolution=(512, 384)),
        options,
        "BlendedMVS",
    )


def _sources(root: Path, pairs_file: Path | None) -> list[SceneSource]:
    listed_folder(root, "--blendedmvs_dir")
    folders = sorted(
        cameras.parent for pattern in ("*/cams", "*/*/cams") for cameras in root.glob(pattern)
    )
    if not folders:
        raise FileNotFoundError(
            f"{root} has no project, a folder with cams, blended_images and rendered_depth_maps; "
            "give the folder that the archives were unpacked in"
        )
    if pairs_file is None:
        return [SceneSource(folder.name, folder) for folder in folders]
    listed = _listed_pairs(pairs_file)
    sources = [
        SceneSource(folder.name, folder, tuple(listed[folder.name]))
        for folder in folders
        if folder.name in listed
    ]
    if not sources:
        raise ValueError(f"{pairs_file} has no pair of the {len(folders)} projects in {root}")
    return sources


def _listed_pairs(path: Path) -> dict[str, list[tuple[str, str, float]]]:
    records = load_records(path, PAIRS.names)
    listed = defaultdict(list)
    for low, high, first, second, score in records[list(PAIRS.names)].tolist():
        listed[scene_name(high, low)].append((image_name(first), image_name(second), score))
    return listed


def _convert(source: SceneSource, folder: Path, *, wanted: PairRange) -> SceneReport:
    _numbers(source.name)
    writer = SceneWriter(folder, separate_pose=True)
    for file in sorted((source.path / "cams").glob("[0-9]*_cam.txt")):
        name = file.name.removesuffix("_cam.txt")
        if source.wants(name):
            writer.take(name, partial(_read_view, source.path, name))
    return writer.finish(source, wanted)


def _read_view(project: Path, name: str) -> SourceView:
    intrinsics, extrinsic = read_camera_file(project / "cams" / f"{name}_cam.txt")
    intrinsics[:2, 2] -= _HALF_PIXEL
    return SourceView(
        name,
        {"": read_rgb(project / "blended_images" / f"{name}.jpg")},
        read_pfm(project / "rendered_depth_maps" / f"{name}.pfm"),
        intrinsics,
        np.linalg.inv(extrinsic),
    )


def _write_index(root: Path, parts: list[ScenePart]) -> None:
    records = []
    for part in parts:
        high, low = _numbers(part.scene)
        names = [int(name) for name in part.names]
        records += [
            (low, high, names[int(i)], names[int(j)], score) for i, j, score in part.pairs.tolist()
        ]
    with atomic_path(root / BlendedMVS.INDEX) as temporary:
        np.save(temporary, np.array(records, PAIRS))


def _numbers(project: str) -> tuple[int, int]:
    """seq_high and seq_low of a project's name."""
    try:
        if len(project) != _DIGITS:
            raise ValueError(f"it has {len(project)} characters")
        return int(project[:8], 16), int(project[8:], 16)
    except ValueError as error:
        raise SceneError(
            f"a project's folder is named by {_DIGITS} hexadecimal digits, by which the index of "
            f"pairs knows it ({error})"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="BlendedMVS to the layout that the data set BlendedMVS reads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--blendedmvs_dir", type=Path, required=True, help="folder of projects")
    add_pair_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
