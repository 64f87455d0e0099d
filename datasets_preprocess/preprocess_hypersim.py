"""Hypersim to the processed layout, with its official split.

    python -m datasets_preprocess.preprocess_hypersim --hypersim_dir RAW --output_dir ROOT

RAW holds scenes as downloaded, ``ai_VVV_NNN``: ``_detail/metadata_scene.csv`` (metres in an
asset unit), ``_detail/cam_XX/camera_keyframe_{orientations,positions,frame_indices}.hdf5``
(camera-to-world; x right, y up, z backward; asset units), ``images/scene_cam_XX_geometry_hdf5/
frame.NNNN.depth_meters.hdf5`` (distance along the ray, metres; NaN = none) and
``images/scene_cam_XX_final_preview/frame.NNNN.tonemap.jpg``. From the data set's repository come
``metadata_images_split_scene_v1.csv`` (which images are public, and the split) and
``metadata_camera_parameters.csv`` (lenses; without it all are taken as 60 degrees wide). Documented
in that repository (Roberts et al., ICCV 2021). A scene's cameras share its world and are one scene;
frames are ``cam_00_0012``. Scenes whose lens is tilted, and so no pinhole, are left out.
"""

import argparse
import csv
import sys
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import numpy as np

from datasets_preprocess.rgbd.pixels import read_color
from datasets_preprocess.rgbd.recording import (
    RawFrame,
    Recording,
    RgbdFrame,
    intrinsics_matrix,
)
from datasets_preprocess.rgbd.scenes import (
    Source,
    preprocess_sources,
    require_folder,
    scene_parser,
)
from datasets_preprocess.rgbd.settings import Settings
from datasets_preprocess.scenes import SceneError, run_command
from dust3r.datasets.hypersim import Hypersim

SPLIT_CSV, CAMERA_CSV = "metadata_images_split_scene_v1.csv", "metadata_camera_parameters.csv"
_TABLES = {
    SPLIT_CSV: "the split and which images are public",
    CAMERA_CSV: "lenses other than 60 degrees wide",
}
_SIZE = (1024, 768)
_FIELD_OF_VIEW = np.pi / 3
_TO_OPENCV = np.diag([1.0, -1.0, -1.0])
_UNIT = "meters_per_asset_unit"


def main(argv: list[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = scene_parser("Hypersim to the processed layout, which Hypersim reads.")
    parser.add_argument("--hypersim_dir", type=Path, required=True, help="folder of the scenes")
    parser.add_argument(
        "--metadata_dir", type=Path, help=f"folder of {SPLIT_CSV}; by default --hypersim_dir"
    )
    return run_command(_run, parser, argv)


def read_scene(source: Source, settings: Settings, *, metadata_dir: Path) -> Recording:
    """The public frames of a scene, with depth along rays to be made z on reading.

    Raises FileNotFoundError where a file is missing, ValueError where one is damaged or the lens
    is no pinhole's, RuntimeError without h5py.
    """
    detail = source.folder / "_detail"
    metres = _metres_in_unit(detail / "metadata_scene.csv")
    hidden = _hidden_frames(metadata_dir / SPLIT_CSV, source.name)
    uv = _lens(metadata_dir / CAMERA_CSV, source.name)
    if uv is not None:
        pinhole(uv, *_SIZE)
    recording = Recording(source.name, source.folder, "hypersim", np.eye(3), [])
    recording.load = partial(_load, camera_from_uv=uv)
    for camera in sorted(path.name for path in detail.glob("cam_*") if path.is_dir()):
        images = source.folder / "images"
        for number, pose in _poses(detail / camera, metres)[:: settings.frame_step]:
            name = f"{camera}_{number:04d}"
            if (camera, number) in hidden:
                recording.skip(f"not public ({hidden[camera, number]})", name)
                continue
            color = images / f"scene_{camera}_final_preview" / f"frame.{number:04d}.tonemap.jpg"
            depth = (
                images / f"scene_{camera}_geometry_hdf5" / f"frame.{number:04d}.depth_meters.hdf5"
            )
            recording.add(RawFrame(name, color, depth, pose))
    return recording


def pinhole(camera_from_uv: np.ndarray, width: int, height: int) -> np.ndarray:
    """Intrinsics (3, 3) of Hypersim's matrix from [-1, 1] image coordinates to camera rays.

    Those coordinates run to the image's outer edges, u right and v up; rays are in the axes x
    right, y up, z backward. Raises ValueError for a lens that is tilted or skewed.
    """
    uv_from_pixel = np.array([[2 / width, 0, 1 / width - 1], [0, -2 / height, 1 - 1 / height]])
    uv_from_pixel = np.concatenate([uv_from_pixel, [[0, 0, 1]]])
    matrix = np.linalg.inv(_TO_OPENCV @ camera_from_uv @ uv_from_pixel)
    matrix /= matrix[2, 2]
    (fx, skew, cx), (low, fy, cy), last = matrix
    if not (np.allclose(last[:2], 0, atol=1e-6) and max(abs(skew), abs(low)) < 1e-3 * fx):
        raise ValueError("the lens is tilted or skewed, which no pinhole camera is")
    return intrinsics_matrix(fx, fy, cx, cy)


def z_of_distance(distance: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """z (H, W) float32 of distances (H, W) along the rays of the pixels; 0 where not finite."""
    rows, columns = np.indices(distance.shape)
    pixels = np.stack([columns, rows, np.ones_like(rows)], -1)
    length = np.linalg.norm(pixels @ np.linalg.inv(intrinsics).T, axis=-1)
    return np.where(np.isfinite(distance) & (distance > 0), distance / length, 0).astype(np.float32)


def _load(frame: RawFrame, *, camera_from_uv: np.ndarray | None) -> RgbdFrame:
    rgb = read_color(frame.color)
    distance = _read_hdf5(frame.depth).astype(np.float64)
    if distance.shape != rgb.shape[:2]:
        raise ValueError(f"{frame.depth}: {distance.shape}, but its image is {rgb.shape[:2]}")
    height, width = distance.shape
    if camera_from_uv is None:
        half = np.tan(_FIELD_OF_VIEW / 2)
        camera_from_uv = np.diag([half, half * height / width, -1])
    intrinsics = pinhole(camera_from_uv, width, height)
    return RgbdFrame(rgb, z_of_distance(distance, intrinsics), intrinsics)


def _poses(folder: Path, metres: float) -> list[tuple[int, np.ndarray]]:
    """Frame numbers and poses (4, 4) camera-to-world, OpenCV axes, in metres."""
    numbers, rotations, positions = (
        _read_hdf5(folder / f"camera_keyframe_{what}.hdf5")
        for what in ("frame_indices", "orientations", "positions")
    )
    poses = np.tile(np.eye(4), (len(numbers), 1, 1))
    poses[:, :3, :3] = rotations @ _TO_OPENCV
    poses[:, :3, 3] = metres * positions
    return [(int(number), pose) for number, pose in zip(numbers, poses, strict=True)]


def _metres_in_unit(path: Path) -> float:
    rows = {row.get("parameter_name"): row.get("parameter_value") for row in _read_csv(path)}
    try:
        return float(rows[_UNIT])
    except (KeyError, TypeError, ValueError) as error:
        raise SceneError(f"{path} states no {_UNIT}") from error


def _hidden_frames(path: Path, scene: str) -> dict[tuple[str, int], str]:
    """Why frames, by camera and number, are not public."""
    rows = [row for row in _split_rows(path) if row["scene_name"] == scene]
    return {
        (row["camera_name"], int(row["frame_id"])): row["exclude_reason"] or "no reason given"
        for row in rows
        if row["included_in_public_release"].strip().lower() != "true"
    }


def _splits(path: Path) -> dict[str, str]:
    """The split of each scene."""
    return {
        row["scene_name"]: row["split_partition_name"]
        for row in _split_rows(path)
        if row["split_partition_name"]
    }


@cache
def _split_rows(path: Path) -> list[dict[str, str]]:
    """The 77,000 rows of the split, none where there is no such file."""
    return _read_csv(path) if path.is_file() else []


def _lens(path: Path, scene: str) -> np.ndarray | None:
    """The scene's matrix (3, 3) from image coordinates to rays, None where no file states it."""
    rows = [row for row in _read_csv(path) if row["scene_name"] == scene] if path.is_file() else []
    if not rows:
        return None
    values = [float(rows[0][f"M_cam_from_uv_{i}{j}"]) for i in range(3) for j in range(3)]
    return np.array(values).reshape(3, 3)


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _read_hdf5(path: Path) -> np.ndarray:
    """The array of a file of Hypersim; ValueError where it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with _h5py().File(path) as file:
            return file["dataset"][:]
    except (OSError, KeyError) as error:
        raise ValueError(f"{path}: unreadable HDF5 file ({error})") from error


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise RuntimeError("Hypersim's files are HDF5: pip install h5py to read them") from error
    return h5py


def _run(options: argparse.Namespace) -> str:
    _h5py()
    root = require_folder(options.hypersim_dir, "--hypersim_dir", "ai_001_001/ ...")
    metadata = options.metadata_dir or root
    splits = _splits(metadata / SPLIT_CSV)
    folders = sorted(path.parent for path in root.glob("ai_*/_detail"))
    sources = [Source(path.name, path, splits.get(path.name, "")) for path in folders]
    report = preprocess_sources(
        sources, partial(read_scene, metadata_dir=metadata), options, Hypersim
    )
    for name, holds in _TABLES.items():
        if not (metadata / name).is_file():
            report += (
                f"\nwarning: no {name} in {metadata}, which holds {holds}; it is in the data set's "
                "repository: give --metadata_dir and a new --output_dir"
            )
    return report


if __name__ == "__main__":
    sys.exit(main())
