"""KITTI's annotated depth and raw recordings to the processed layout.

    python -m datasets_preprocess.preprocess_kitti --kitti_raw_dir RAW --kitti_depth_dir DEPTH \\
        --output_dir ROOT

RAW is the raw data, synced and rectified: ``<date>/<drive>_sync/{image_02,image_03}/data/*.png``,
``oxts/data/*.txt``, and ``<date>/calib_{cam_to_cam,velo_to_cam,imu_to_velo}.txt``, as the readme of
the raw data's development kit says (Geiger et al., "Vision meets robotics", IJRR 2013). DEPTH is
``data_depth_annotated``: ``{train,val}/<drive>_sync/proj_depth/groundtruth/image_02/*.png``, uint16
with 256 steps a metre, 0 = none, of several laser sweeps and so sparse (Uhrig et al., "Sparsity
invariant CNNs", 3DV 2017). Every drive becomes a scene; its depth keeps its 256 steps a metre. Its
world is the inertial unit at the drive's first frame: x forward, y left, z up.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from datasets_preprocess.rgbd.pixels import read_color, read_depth_map
from datasets_preprocess.rgbd.recording import RawFrame, Recording, RgbdFrame
from datasets_preprocess.rgbd.scenes import (
    Source,
    preprocess_sources,
    require_folder,
    scene_parser,
)
from datasets_preprocess.rgbd.settings import Settings
from datasets_preprocess.scenes import run_command
from dust3r.datasets.kitti import KITTI

STEPS_PER_METRE = 256
CAMERAS = ("image_02", "image_03")
_SPLITS = ("train", "val")
_EARTH_RADIUS_M = 6378137.0


def main(argv: list[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = scene_parser("KITTI's annotated depth to the processed layout, which KITTI reads.")
    parser.add_argument("--kitti_raw_dir", type=Path, required=True, help="raw data, by dates")
    parser.add_argument("--kitti_depth_dir", type=Path, required=True, help="data_depth_annotated")
    parser.add_argument(
        "--cameras", nargs="+", choices=CAMERAS, default=list(CAMERAS), help="of the two in colour"
    )
    return run_command(_run, parser, argv)


def find_drives(depth_dir: Path) -> list[Source]:
    """The drives in ``train`` and ``val`` of the annotated depth."""
    return [
        Source(folder.name, folder, split)
        for split in _SPLITS
        for folder in sorted((depth_dir / split).glob("*_drive_*"))
    ]


def read_drive(
    source: Source, settings: Settings, *, raw_dir: Path, cameras: list[str]
) -> Recording:
    """The frames of a drive with depth, of each camera: ``image_02_0000000005``.

    Raises FileNotFoundError where the raw drive or its calibration is missing, ValueError where
    the calibration is damaged.
    """
    date = raw_dir / source.name[:10]
    drive = date / source.name
    if not drive.is_dir():
        raise FileNotFoundError(f"no raw data {drive}; download the drive, synced and rectified")
    calibration = {
        name: _calibration(date / f"calib_{name}.txt")
        for name in ("cam_to_cam", "velo_to_cam", "imu_to_velo")
    }
    poses = drive_poses(sorted((drive / "oxts" / "data").glob("*.txt")))
    recording = Recording(source.name, source.folder, "kitti", np.eye(3), [])
    recording.depth_unit, recording.sparse, recording.one_camera = STEPS_PER_METRE, True, False
    intrinsics = {}
    for camera in cameras:
        intrinsics[camera], camera_from_imu = _rectified(calibration, camera[-2:])
        depths = sorted((source.folder / "proj_depth" / "groundtruth" / camera).glob("*.png"))
        for depth in depths[:: settings.frame_step]:
            name = f"{camera}_{depth.stem}"
            if depth.stem not in poses:
                recording.skip("no oxts file", name)
                continue
            pose = poses[depth.stem] @ np.linalg.inv(camera_from_imu)
            color = drive / camera / "data" / f"{depth.stem}.png"
            recording.add(RawFrame(name, color, depth, pose))
    recording.load = partial(_load, intrinsics=intrinsics)
    return recording


def drive_poses(files: list[Path]) -> dict[str, np.ndarray]:
    """Pose (4, 4) of the inertial unit at each oxts file, in the frame it has at the first one.

    Latitude and longitude are Mercator's, scaled at the first latitude; rotation is Rz(yaw)
    Ry(pitch) Rx(roll), as the development kit's readme defines them. A damaged file is left out.
    """
    poses: dict[str, np.ndarray] = {}
    scale, first = None, np.eye(4)
    for file in files:
        try:
            latitude, longitude, altitude, *angles = np.array(file.read_text().split()[:6], float)
        except ValueError:
            continue
        if scale is None:
            scale = np.cos(np.radians(latitude))
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix()
        pose[:3, 3] = (
            scale * _EARTH_RADIUS_M * np.radians(longitude),
            scale * _EARTH_RADIUS_M * np.log(np.tan(np.radians(90 + latitude) / 2)),
            altitude,
        )
        if not poses:
            first = np.linalg.inv(pose)
        poses[file.stem] = first @ pose
    return poses


def _rectified(
    calibration: dict[str, dict[str, np.ndarray]], number: str
) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (3, 3) of a rectified camera, and its frame from the inertial unit's (4, 4)."""
    cameras = calibration["cam_to_cam"]
    try:
        projection = cameras[f"P_rect_{number}"].reshape(3, 4)
        rectification = np.eye(4)
        rectification[:3, :3] = cameras["R_rect_00"].reshape(3, 3)
        camera_from_laser, laser_from_unit = (
            _rigid(calibration[name]) for name in ("velo_to_cam", "imu_to_velo")
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"KITTI's calibration files lack something: {error}") from error
    # Camera 0's rectified frame, from which the others differ by a shift along their baseline.
    shift = np.eye(4)
    shift[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    return projection[:, :3], shift @ rectification @ camera_from_laser @ laser_from_unit


def _rigid(calibration: dict[str, np.ndarray]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = calibration["R"].reshape(3, 3), calibration["T"]
    return matrix


def _calibration(path: Path) -> dict[str, np.ndarray]:
    """Numbers of each line ``key: numbers``; lines of words, such as times, are passed over."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; download the calibration of the raw data's date")
    found = {}
    for line in path.read_text().splitlines():
        key, _, values = line.partition(":")
        try:
            found[key.strip()] = np.array(values.split(), np.float64)
        except ValueError:
            continue
    return found


def _load(frame: RawFrame, *, intrinsics: dict[str, np.ndarray]) -> RgbdFrame:
    rgb, depth = read_color(frame.color), read_depth_map(frame.depth, 1 / STEPS_PER_METRE)
    if rgb.shape[:2] != depth.shape:
        raise ValueError(f"{frame.depth}: depth of {depth.shape} for colour of {rgb.shape[:2]}")
    return RgbdFrame(rgb, depth, intrinsics[frame.name[: len(CAMERAS[0])]])


def _run(options: argparse.Namespace) -> str:
    raw = require_folder(options.kitti_raw_dir, "--kitti_raw_dir", "dates such as 2011_09_26/")
    depth = require_folder(options.kitti_depth_dir, "--kitti_depth_dir", "train/ and val/")
    read = partial(read_drive, raw_dir=raw, cameras=options.cameras)
    return preprocess_sources(find_drives(depth), read, options, KITTI)


if __name__ == "__main__":
    sys.exit(main())
