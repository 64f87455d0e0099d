"""SUN3D-like recordings with poses in one of several forms, put together by number or time.

``image/`` or ``color/`` with JPEG or PNG files, ``depth/*.png`` (16 bits, millimetres or SUN3D's
rotated ones), ``intrinsics.txt`` (3x3), and camera-to-world poses in one of these forms:

- ``extrinsics/*.txt``, one file of 3x4 or 4x4 for every image, or one file for all of them, of
  which the newest, by its name, counts;
- ``extrinsics.txt``, ``poses.txt``, ``pose.txt`` or ``groundtruth.txt``: matrices one after
  another, or lines ``time tx ty tz qx qy qz qw``.

A frame's time is the last number in its file's name (SUN3D: ``<number>-<time>``). Depth belongs to
the image of the nearest time, and so do timed poses, if that is at most 0.6 of a frame away.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from datasets_preprocess.rgbd.recording import RawFrame, Recording

LOOKS_LIKE = (
    "with poses in one file: folders image/ or color/, depth/, a file intrinsics.txt and poses in "
    "extrinsics/*.txt, extrinsics.txt, poses.txt, pose.txt or groundtruth.txt"
)

_IMAGE_FOLDERS = ("image", "color")
_POSE_FILES = ("extrinsics.txt", "poses.txt", "pose.txt", "groundtruth.txt")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Streams run at one rate but not in step: the right partner is about half a frame away at most.
_REACH = 0.6
_SAMPLED = 5


def fits(folder: Path) -> bool:
    """Whether ``read_timed`` reads ``folder``: no SUN3D sequence as downloaded, nor ScanNet's."""
    there = all((folder / part).exists() for part in ("depth", "intrinsics.txt"))
    if not there or _image_folder(folder) is None:
        return False
    listed = _pose_files(folder)
    as_downloaded = (folder / "image").is_dir() and (folder / "extrinsics").is_dir()
    return bool(listed) and not (as_downloaded and not _one_for_each(folder, listed))


def read_timed(folder: Path, name: str) -> Recording:
    """The frames of a recording of this kind that have a depth and a pose.

    Raises:
        ValueError: a file that holds poses or intrinsics is none, or poses cannot be told apart
            since their number is not that of the images.
    """
    recording = Recording(name, folder, "timed", _intrinsics(folder / "intrinsics.txt"), [])
    images = sorted(
        (p for p in _image_folder(folder).iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES),
        key=_time,
    )
    depths = sorted((folder / "depth").glob("*.png"), key=_time)
    times = np.array([_time(path) for path in images])
    partners = _nearest(times, np.array([_time(path) for path in depths]))
    poses = _poses(folder, images, times)
    for image, partner, pose in zip(images, partners, poses, strict=True):
        if partner < 0:
            recording.skip("no depth at that time", image.name)
        elif pose is None:
            recording.skip("no pose at that time", image.name)
        else:
            recording.add(RawFrame(image.stem, image, depths[partner], pose))
    recording.rotated_bits = has_rotated_bits(recording)
    return recording


def has_rotated_bits(recording: Recording) -> bool:
    """Whether depth files have their 16 bits rotated left by 3, SUN3D's way.

    Depths below 8.192 m are multiples of 8 then, and else one in eight is.
    """
    chosen = recording.frames[:: max(1, len(recording.frames) // _SAMPLED)][:_SAMPLED]
    stored = [cv2.imread(str(frame.depth), cv2.IMREAD_UNCHANGED) for frame in chosen]
    steps = np.concatenate([np.zeros(0, int), *(s[s > 0] for s in stored if s is not None)])
    return bool(len(steps)) and float((steps % 8 == 0).mean()) > 0.5


def _image_folder(folder: Path) -> Path | None:
    return next((folder / one for one in _IMAGE_FOLDERS if (folder / one).is_dir()), None)


def _pose_files(folder: Path) -> list[Path]:
    listed = sorted((folder / "extrinsics").glob("*.txt"))
    return listed or [folder / name for name in _POSE_FILES if (folder / name).is_file()]


def _one_for_each(folder: Path, listed: list[Path]) -> bool:
    """Whether each image has a file of its own with its pose."""
    return listed[0].parent != folder and len(listed[-1].read_text().split()) in (12, 16)


def _poses(folder: Path, images: list[Path], times: np.ndarray) -> Sequence[np.ndarray | None]:
    """Camera-to-world (4, 4) of each image, or None."""
    listed = _pose_files(folder)
    if _one_for_each(folder, listed):
        by_time = {_time(path): _matrices(path)[0] for path in listed}
        if len(listed) == len(images) and not set(times) & set(by_time):
            return [_matrices(path)[0] for path in listed]
        return [by_time.get(time) for time in times]
    path = listed[-1]
    rows = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    if all(len(row) == 8 for row in rows if row):
        return _timed_poses(path, times)
    matrices = _matrices(path)
    if len(matrices) != len(images):
        raise ValueError(
            f"{path}: {len(matrices)} poses for {len(images)} images; expected one for each, or "
            "lines of time tx ty tz qx qy qz qw"
        )
    return list(matrices)


def _timed_poses(path: Path, times: np.ndarray) -> list[np.ndarray | None]:
    values = _numbers(path).reshape(-1, 8)
    values = values[np.argsort(values[:, 0], kind="stable")]
    # Rotation refuses quaternions that are no numbers or 0: such a pose is one that is missing.
    good = np.isfinite(values).all(1) & (np.abs(values[:, 4:]).sum(1) > 0)
    matrices = np.full((len(values), 4, 4), np.nan)
    matrices[good] = np.eye(4)
    matrices[good, :3, :3] = Rotation.from_quat(values[good, 4:]).as_matrix()
    matrices[good, :3, 3] = values[good, 1:4]
    return [matrices[near] if near >= 0 else None for near in _nearest(times, values[:, 0])]


def _matrices(path: Path) -> np.ndarray:
    """Poses (n, 4, 4), of a file of 3x4 or of 4x4 matrices: the last row of 4x4 tells."""
    values = _numbers(path)
    square = values.size % 16 == 0 and np.allclose(
        values.reshape(-1, 16)[:, 12:], [0, 0, 0, 1], equal_nan=False
    )
    if not values.size or (not square and values.size % 12):
        raise ValueError(f"{path}: expected 3x4 or 4x4 matrices, got {values.size} numbers")
    if square:
        return values.reshape(-1, 4, 4)
    stored = values.reshape(-1, 3, 4)
    return np.concatenate([stored, np.tile([[[0.0, 0, 0, 1]]], (len(stored), 1, 1))], axis=1)


def _intrinsics(path: Path) -> np.ndarray:
    values = _numbers(path)
    if values.size not in (9, 16):
        raise ValueError(f"{path}: expected a 3x3 matrix, got {values.size} numbers")
    side = 3 if values.size == 9 else 4
    return values.reshape(side, side)[:3, :3]


def _numbers(path: Path) -> np.ndarray:
    lines = (line for line in path.read_text().splitlines() if not line.startswith("#"))
    try:
        return np.array(" ".join(lines).replace(",", " ").split(), np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: expected numbers ({error})") from error


def _time(path: Path) -> float:
    numbers = re.findall(r"\d+(?:\.\d+)?", path.stem)
    if not numbers:
        raise ValueError(f"{path}: its name has no number, which would say when it was taken")
    return float(numbers[-1])


def _nearest(times: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each of ``times`` (N,) the index of the nearest of ``others`` (M,), -1 if it is far."""
    gaps = [np.median(np.diff(each)) for each in (times, others) if len(each) > 1]
    reach = _REACH * min(gaps, default=0)
    if not len(others):
        return np.full(len(times), -1)
    after = np.searchsorted(others, times).clip(0, len(others) - 1)
    before = np.maximum(after - 1, 0)
    near = np.where(times - others[before] <= np.abs(others[after] - times), before, after)
    return np.where(np.abs(others[near] - times) <= reach, near, -1)
