"""KITTI as it is downloaded: rectified stereo, GPS and IMU, calibration chains, sparse depth."""

from pathlib import Path

import numpy as np
from dataset_contract import Case
from rgbd_raw import steps, write_image
from scipy.spatial.transform import Rotation
from world import World

from datasets_preprocess.preprocess_kitti import main

SIZE = (208, 112)
CAMERA = np.array([[150.0, 0, 101.6], [0, 150.0, 54.9], [0, 0, 1]])
DATE = "2011_09_26"
NO_LASER = 0.3
EARTH = 6378137.0
LATITUDE, LONGITUDE, ALTITUDE = 49.015, 8.4342, 112.8
# Camera 2 and 3 along the baseline of camera 0, in metres: P_rect's fourth column is -K centre.
CENTRES = {"02": np.array([-0.06, 0.001, -0.002]), "03": np.array([0.07, 0.0, 0.003])}


def rigid(rotation: np.ndarray, translation: list[float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def turned(x: float, y: float, z: float) -> np.ndarray:
    return Rotation.from_euler("xyz", [x, y, z], degrees=True).as_matrix()


# Laser and inertial unit: x forward, y left, z up; camera: x right, y down, z forward.
_AXES = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
CAMERA_FROM_LASER = rigid(turned(0.5, -0.4, 0.8) @ _AXES, [-0.04, -0.076, -0.27])
LASER_FROM_UNIT = rigid(turned(-0.1, 0.05, 0.85), [-0.81, 0.32, -0.8])
RECTIFICATION = turned(0.6, -0.7, 0.4)


def rectified_from_unit() -> np.ndarray:
    """Camera 0's rectified frame from the inertial unit's (4, 4)."""
    return rigid(RECTIFICATION, [0, 0, 0]) @ CAMERA_FROM_LASER @ LASER_FROM_UNIT


def unit_poses(number: int) -> np.ndarray:
    """Poses in the world of the unit whose camera 0 walks around it."""
    return World().poses(number) @ rectified_from_unit()


def oxts(pose: np.ndarray) -> str:
    """The 30 numbers of a unit's pose in metres east, north and up of a place in Karlsruhe."""
    scale = np.cos(np.radians(LATITUDE))
    north = scale * EARTH * np.log(np.tan(np.radians(90 + LATITUDE) / 2))
    longitude = LONGITUDE + np.degrees(pose[0, 3] / (scale * EARTH))
    latitude = 2 * np.degrees(np.arctan(np.exp((north + pose[1, 3]) / (scale * EARTH)))) - 90
    yaw, pitch, roll = Rotation.from_matrix(pose[:3, :3]).as_euler("ZYX")
    values = [latitude, longitude, ALTITUDE + pose[2, 3], roll, pitch, yaw, *[0.0] * 24]
    return " ".join(f"{value:.14f}" for value in values)


def numbers(*values: np.ndarray) -> str:
    return " ".join(f"{value:.9e}" for array in values for value in np.ravel(array))


def write_calibration(folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = ["calib_time: 09-Jan-2012 13:57:47", "corner_dist: 9.950000e-02"]
    lines.append(f"R_rect_00: {numbers(RECTIFICATION)}")
    for camera, centre in CENTRES.items():
        lines.append(f"R_rect_{camera}: {numbers(turned(1, 2, 3))}")
        lines.append(f"P_rect_{camera}: {numbers(np.c_[CAMERA, -CAMERA @ centre])}")
    (folder / "calib_cam_to_cam.txt").write_text("\n".join(lines))
    for name, matrix in (("velo_to_cam", CAMERA_FROM_LASER), ("imu_to_velo", LASER_FROM_UNIT)):
        text = f"calib_time: 15-Mar-2012 11:37:16\nR: {numbers(matrix[:3, :3])}\n"
        (folder / f"calib_{name}.txt").write_text(f"{text}T: {numbers(matrix[:3, 3])}\n")


def write_drive(raw: Path, depth_dir: Path, name: str, poses: np.ndarray) -> None:
    """A drive of ``poses`` of the unit; some depth pixels have none, and all at the top."""
    world, rng = World(), np.random.default_rng(0)
    drive = raw / DATE / name
    for number, pose in enumerate(poses):
        stem = f"{number:010d}"
        (drive / "oxts" / "data").mkdir(parents=True, exist_ok=True)
        (drive / "oxts" / "data" / f"{stem}.txt").write_text(oxts(pose))
        for camera, centre in CENTRES.items():
            eye = pose @ np.linalg.inv(rectified_from_unit()) @ rigid(np.eye(3), centre)
            rgb, depth = world.render(eye, CAMERA, SIZE)
            write_image(drive / f"image_{camera}" / "data" / f"{stem}.png", rgb)
            stored = steps(depth, 256)
            stored[rng.random(stored.shape) < NO_LASER] = 0
            stored[:20] = 0
            truth = depth_dir / name / "proj_depth" / "groundtruth" / f"image_{camera}"
            write_image(truth / f"{stem}.png", stored)


def write_release(folder: Path) -> tuple[Path, Path]:
    raw, depth = folder / "raw", folder / "data_depth_annotated"
    poses = unit_poses(5)
    write_calibration(raw / DATE)
    write_drive(raw, depth / "train", f"{DATE}_drive_0001_sync", poses[:3])
    write_drive(raw, depth / "val", f"{DATE}_drive_0002_sync", poses[2:])
    return raw, depth


def build(folder: Path) -> dict[str, object]:
    raw, depth = write_release(folder)
    root = folder / "processed"
    arguments = ["--kitti_raw_dir", str(raw), "--kitti_depth_dir", str(depth)]
    options = ["--output_dir", str(root), "--max_overlap", "1", "--num_workers", "1"]
    assert main([*arguments, *options]) == 0
    return {"ROOT": root}


CASE = Case(
    name="KITTI",
    build=build,
    spec="KITTI(split='train', ROOT='{ROOT}')",
    metric=True,
    portrait=False,
    frame=unit_poses(1)[0],
    min_valid=0.3,
)
