"""What a posed RGB-D recording is, whatever format it came in."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class RawFrame:
    """One frame as found: its basename, colour and depth files, pose (4, 4) camera-to-world."""

    name: str
    color: Path
    depth: Path
    pose: np.ndarray


@dataclass(frozen=True)
class RgbdFrame:
    """``rgb`` (h, w, 3) uint8 and ``depth`` (H, W) metres, z, 0 = none, with the depth camera's
    intrinsics (3, 3)."""

    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray


@dataclass
class Recording:
    """A sequence with usable frames listed, and the others counted by reason in ``skipped``.

    ``examples`` names the first frame of each reason. ``intrinsics`` (3, 3) are the depth camera's;
    ``color_intrinsics`` (3, 3) the colour camera's where the format states another one.
    ``rotated_bits`` says that depth is stored SUN3D's way. ``load`` reads a frame of a format whose
    colour and depth are no plain files of one pinhole camera; it raises ValueError for a damaged
    one, and is picklable. ``depth_unit`` is steps a metre of the depth that is written, ``split``
    the part of the official split. ``sparse``: depth comes from a laser, a few pixels of a hundred.
    ``one_camera``: a frame of another size than the rest is damaged.
    """

    name: str
    folder: Path
    format: str
    intrinsics: np.ndarray
    frames: list[RawFrame]
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    color_intrinsics: np.ndarray | None = None
    rotated_bits: bool = False
    load: Callable[[RawFrame], RgbdFrame] | None = None
    depth_unit: float = 1000.0
    split: str = ""
    sparse: bool = False
    one_camera: bool = True

    def skip(self, reason: str, example: str) -> None:
        """Count a frame as left out; ``example`` says which, and what was wrong with it."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, example)

    def add(self, frame: RawFrame) -> None:
        """List the frame, or count why it cannot be used."""
        fault = pose_fault(frame.pose)
        if not frame.color.is_file():
            fault = "no colour file"
        elif not frame.depth.is_file():
            fault = "no depth file"
        if fault:
            self.skip(fault, frame.name)
        else:
            self.frames.append(frame)


def intrinsics_matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """The (3, 3) matrix of a pinhole camera, in pixels."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def pose_fault(pose: np.ndarray) -> str | None:
    """Why a (4, 4) matrix is no pose, or None: not finite, or not a rotation and a translation."""
    if not np.isfinite(pose).all():
        return "pose not finite"
    rotation = pose[:3, :3]
    orthonormal = np.allclose(rotation.T @ rotation, np.eye(3), atol=0.01)
    if not (orthonormal and np.linalg.det(rotation) > 0 and np.allclose(pose[3], [0, 0, 0, 1])):
        return "pose not rigid"
    return None
