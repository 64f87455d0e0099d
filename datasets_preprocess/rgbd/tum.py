"""TUM RGB-D's sequences (Sturm et al., "A benchmark for the evaluation of ... SLAM", IROS 2012).

File formats and calibration are on the benchmark's pages at TUM's computer vision group.
``rgb.txt`` and ``depth.txt`` list ``<time> <file>``, ``groundtruth.txt`` ``<time> tx ty tz qx qy qz
qw`` of the colour camera (camera-to-world, metres, OpenCV axes); lines with # are comments. Depth
is uint16, 5000 steps a metre, 0 = none, registered pixel by pixel to the colour image. Images of
freiburg1 and freiburg2 are as the lens distorts them, those of freiburg3 are undistorted already.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from datasets_preprocess.rgbd.pixels import read_color, read_depth_map, resample_depth
from datasets_preprocess.rgbd.recording import (
    RawFrame,
    Recording,
    RgbdFrame,
    intrinsics_matrix,
)

MAX_TIME_DIFFERENCE = 0.02
STEPS_PER_METRE = 5000

# fx fy cx cy, and k1 k2 p1 p2 k3 of OpenCV's distortion, of the colour cameras.
_CAMERAS = {
    "freiburg1": (
        (517.306408, 516.469215, 318.643040, 255.313989),
        (0.262383, -0.953104, -0.005358, 0.002628, 1.163314),
    ),
    "freiburg2": (
        (520.908620, 521.007327, 325.141442, 249.701764),
        (0.231222, -0.784899, -0.003257, -0.000105, 0.917205),
    ),
    "freiburg3": ((535.433105, 539.212524, 320.106653, 247.632132), (0.0,) * 5),
}
_SHORT = {"fr1": "freiburg1", "fr2": "freiburg2", "fr3": "freiburg3"}


def read_tum(folder: Path, name: str, intrinsics: np.ndarray | None, frame_step: int) -> Recording:
    """The frames with a depth image and a pose within 20 ms, to be undistorted on reading.

    Calibration goes by the folder's name, which says freiburg1, 2 or 3; ``intrinsics`` (3, 3) in
    its place mean images without distortion. Raises ValueError for another name without them.
    """
    distortion = np.zeros(5)
    if intrinsics is None:
        intrinsics, distortion = camera_of(folder.name)
    recording = Recording(name, folder, "tum", intrinsics, [])
    recording.load = partial(load_undistorted, intrinsics=intrinsics, distortion=distortion)
    colour_times, colours = _listed(folder / "rgb.txt")
    depth_times, depths = _listed(folder / "depth.txt")
    pose_times, places = _listed(folder / "groundtruth.txt")
    poses = _poses(folder / "groundtruth.txt", places)
    with_depth, with_pose = _nearest(colour_times, depth_times), _nearest(colour_times, pose_times)
    for index in range(0, len(colours), frame_step):
        colour = folder / colours[index][0]
        if with_depth[index] < 0:
            recording.skip("no depth at that time", colour.name)
        elif with_pose[index] < 0:
            recording.skip("no pose at that time", colour.name)
        else:
            depth = folder / depths[with_depth[index]][0]
            recording.add(RawFrame(colour.stem, colour, depth, poses[with_pose[index]]))
    return recording


def camera_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (3, 3) and OpenCV's distortion (5,) of the sequence called ``name``."""
    lower = name.lower()
    for short, long in _SHORT.items():
        if long in lower or short in lower:
            camera, distortion = _CAMERAS[long]
            return intrinsics_matrix(*camera), np.array(distortion)
    raise ValueError(
        f"{name}: a TUM sequence's folder says freiburg1, freiburg2 or freiburg3, whose cameras "
        "are known; rename it, or give --intrinsics fx fy cx cy of undistorted images"
    )


def load_undistorted(
    frame: RawFrame, *, intrinsics: np.ndarray, distortion: np.ndarray
) -> RgbdFrame:
    """Colour and depth as a pinhole camera of the same ``intrinsics`` (3, 3) sees them."""
    rgb = read_color(frame.color)
    depth = read_depth_map(frame.depth, 1 / STEPS_PER_METRE)
    if rgb.shape[:2] != depth.shape:
        raise ValueError(
            f"{frame.depth}: depth of {depth.shape} for colour of {rgb.shape[:2]}; they are "
            "registered to each other and so of one size"
        )
    if distortion.any():
        x, y = cv2.initUndistortRectifyMap(
            intrinsics, distortion, np.eye(3), intrinsics, depth.shape[::-1], cv2.CV_32FC1
        )
        rgb = cv2.remap(rgb, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        depth = resample_depth(depth, x, y)
    return RgbdFrame(rgb, depth, intrinsics)


def _listed(path: Path) -> tuple[np.ndarray, list[list[str]]]:
    """Times (N,), ascending, and the other words of each line."""
    lines = path.read_text().splitlines()
    words = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    try:
        rows = sorted((float(row[0]), row[1:]) for row in words)
    except ValueError as error:
        raise ValueError(f"{path}: every line begins with a time in seconds ({error})") from error
    if not rows or not all(row[1] for row in rows):
        raise ValueError(f"{path}: expected lines of a time and more, found {len(rows)} lines")
    return np.array([row[0] for row in rows]), [row[1] for row in rows]


def _poses(path: Path, rows: list[list[str]]) -> np.ndarray:
    """Camera-to-world (N, 4, 4) of rows tx ty tz qx qy qz qw."""
    try:
        values = np.array(rows, np.float64).reshape(-1, 7)
        rotations = Rotation.from_quat(values[:, 3:]).as_matrix()
    except ValueError as error:
        raise ValueError(f"{path}: expected time tx ty tz qx qy qz qw lines ({error})") from error
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotations, values[:, :3]
    return poses


def _nearest(times: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each of ``times`` (N,) the index of the nearest of ``others`` (M,), -1 if it is far."""
    after = np.searchsorted(others, times).clip(1, max(len(others) - 1, 1))
    if len(others) == 1:
        after = np.ones_like(after)
        others = np.repeat(others, 2)
    before = after - 1
    nearest = np.where(times - others[before] <= others[after] - times, before, after)
    far = np.abs(others[nearest] - times) > MAX_TIME_DIFFERENCE
    return np.where(far, -1, nearest)
