"""A scene of the ARKitScenes release as a recording, turned upright.

See ``datasets_preprocess.preprocess_arkitscenes`` for the files that are read.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from datasets_preprocess.rgbd.pixels import read_color, read_depth_map, resample_depth
from datasets_preprocess.rgbd.recording import (
    RawFrame,
    Recording,
    RgbdFrame,
    intrinsics_matrix,
)
from datasets_preprocess.scenes import SceneError

IMAGES, DEPTH, TRAJECTORY = "vga_wide", "lowres_depth", "lowres_wide.traj"

_MILLIMETRE = 0.001
# Half the time between two depth maps, with what rounding to milliseconds adds.
_MAX_DELAY_S = 0.01
# Intrinsics change slowly, with the focus; names may differ by a millisecond.
_MAX_CAMERA_DELAY_S = 0.05
_MAX_POSE_GAP_S = 0.5
_UP = np.array([0, 0, 1.0])
# A quarter turn counter-clockwise: the camera's new x axis is its old y axis, its new y minus x.
_QUARTER = np.array([[0, 1.0, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Trajectory:
    """Camera-to-world poses over time: ``times`` (N,) seconds, rising, and ``poses`` (N, 4, 4)."""

    times: np.ndarray
    poses: np.ndarray

    @classmethod
    def from_file(cls, path: Path) -> "Trajectory":
        """Of lines 'time rx ry rz tx ty tz', world-to-camera; ValueError for a damaged file."""
        try:
            rows = np.loadtxt(path, ndmin=2)
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error})") from error
        if rows.ndim != 2 or rows.shape[1] != 7 or len(rows) < 2:
            raise ValueError(f"{path}: expected 2 or more lines of 7 numbers, got {rows.shape}")
        _, first = np.unique(rows[:, 0], return_index=True)
        rows = rows[first]
        world_to_camera = np.tile(np.eye(4), (len(rows), 1, 1))
        world_to_camera[:, :3, :3] = Rotation.from_rotvec(rows[:, 1:4]).as_matrix()
        world_to_camera[:, :3, 3] = rows[:, 4:]
        return cls(rows[:, 0], np.linalg.inv(world_to_camera))

    def at(self, time: float) -> np.ndarray | None:
        """The pose (4, 4), interpolated; None outside of the recording and in gaps of it."""
        after = int(np.searchsorted(self.times, time))
        if after < len(self.times) and self.times[after] == time:
            return self.poses[after]
        if after in (0, len(self.times)):
            return None
        span = self.times[after - 1 : after + 1]
        if span[1] - span[0] > _MAX_POSE_GAP_S:
            return None
        ends = self.poses[after - 1 : after + 1]
        share = (time - span[0]) / (span[1] - span[0])
        pose = np.eye(4)
        turns = Slerp(span, Rotation.from_matrix(ends[:, :3, :3]))
        pose[:3, :3] = turns(time).as_matrix()
        pose[:3, 3] = (1 - share) * ends[0, :3, 3] + share * ends[1, :3, 3]
        return pose


def read_scene(folder: Path, name: str, frame_step: int) -> Recording:
    """The recording of the video in ``folder``: images with the depth, pose and intrinsics of their
    time, all turned so that the sky is up.

    Raises FileNotFoundError or ValueError where a part of the release is missing or damaged.
    """
    images = _timed(folder / IMAGES, ".png")
    depths = _timed(folder / DEPTH, ".png")
    cameras = _timed(folder / f"{IMAGES}_intrinsics", ".pincam")
    trajectory = Trajectory.from_file(folder / TRAJECTORY)
    recording = Recording(name, folder, "arkitscenes", np.eye(3), [])
    pincams: dict[str, Path] = {}
    found = []
    for time, image in list(zip(*images, strict=True))[::frame_step]:
        pose = trajectory.at(time)
        depth = _nearest(depths, time, _MAX_DELAY_S)
        camera = _nearest(cameras, time, _MAX_CAMERA_DELAY_S)
        if pose is None:
            recording.skip("no pose at that time", image.name)
        elif depth is None:
            recording.skip("no depth at that time", image.name)
        elif camera is None:
            recording.skip("no intrinsics at that time", image.name)
        else:
            pincams[image.stem] = camera
            found.append(RawFrame(image.stem, image, depth, pose))
    turns = quarter_turns([frame.pose for frame in found])
    for frame in found:
        pose = frame.pose @ np.linalg.matrix_power(_QUARTER, turns).T
        recording.add(RawFrame(frame.name, frame.color, frame.depth, pose))
    recording.load = partial(_load, pincams=pincams, turns=turns)
    return recording


def quarter_turns(poses: list[np.ndarray]) -> int:
    """How often to turn a scene's images by 90 degrees counter-clockwise to have the sky up.

    ``poses`` (4, 4) camera-to-world; the world's z axis points up. The direction is the mean over
    the frames of where the sky is in the image, so that all images of a scene turn alike.
    """
    if not poses:
        return 0
    right, down = np.mean([(pose[:3, :3].T @ _UP)[:2] for pose in poses], axis=0)
    if abs(down) >= abs(right):
        return 0 if down <= 0 else 2
    return 1 if right > 0 else 3


def turned_intrinsics(intrinsics: np.ndarray, size: tuple[int, int], turns: int) -> np.ndarray:
    """Intrinsics (3, 3) of an image of ``size`` (width, height) after ``turns`` quarter turns
    counter-clockwise."""
    width, height = size
    for _ in range(turns):
        (fx, _, cx), (_, fy, cy) = intrinsics[:2]
        intrinsics = intrinsics_matrix(fy, fx, cy, width - 1 - cx)
        width, height = height, width
    return intrinsics


def read_pincam(path: Path) -> tuple[tuple[int, int], np.ndarray]:
    """(width, height) and intrinsics (3, 3) of a line 'w h fx fy cx cy'."""
    try:
        width, height, *camera = (float(word) for word in path.read_text().split())
        intrinsics = intrinsics_matrix(*camera)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected 'width height fx fy cx cy' ({error})") from error
    return (int(width), int(height)), intrinsics


def _load(frame: RawFrame, *, pincams: dict[str, Path], turns: int) -> RgbdFrame:
    size, intrinsics = read_pincam(pincams[frame.name])
    rgb = read_color(frame.color)
    if rgb.shape[1::-1] != size:
        raise ValueError(f"{frame.color}: {rgb.shape[1]}x{rgb.shape[0]}, but its camera is {size}")
    depth = read_depth_map(frame.depth, _MILLIMETRE)
    depth = _enlarged(depth, rgb.shape[:2])
    return RgbdFrame(
        np.ascontiguousarray(np.rot90(rgb, turns)),
        np.ascontiguousarray(np.rot90(depth, turns)),
        turned_intrinsics(intrinsics, size, turns),
    )


def _enlarged(depth: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Depth (h, w) on the finer grid (H, W) of an image of the same view."""
    (height, width), (rows, columns) = shape, depth.shape
    y = (np.arange(height) + 0.5) * rows / height - 0.5
    x = (np.arange(width) + 0.5) * columns / width - 0.5
    x, y = (grid.astype(np.float32) for grid in np.meshgrid(x, y))
    # Beyond the outermost centres the outermost depth is taken.
    return resample_depth(depth, x.clip(0, columns - 1), y.clip(0, rows - 1))


def _timed(folder: Path, suffix: str) -> tuple[np.ndarray, list[Path]]:
    """Times in seconds, rising, and the files '<video>_<time><suffix>' of a folder."""
    found = []
    for path in folder.glob(f"*{suffix}"):
        try:
            found.append((float(path.name.removesuffix(suffix).rsplit("_", 1)[1]), path))
        except (IndexError, ValueError) as error:
            raise ValueError(f"{path}: expected a name <video>_<seconds>{suffix}") from error
    if not found:
        raise SceneError(f"{folder} has no {suffix} file: download {folder.name} of this video")
    found.sort()
    return np.array([time for time, _ in found]), [path for _, path in found]


def _nearest(files: tuple[np.ndarray, list[Path]], time: float, most: float) -> Path | None:
    times, paths = files
    place = int(np.abs(times - time).argmin())
    return paths[place] if abs(times[place] - time) <= most else None
