"""Cameras and poses of a COLMAP model in text form (https://colmap.github.io/format.html)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

_CAMERA_FIELDS, _IMAGE_FIELDS = 5, 10


@dataclass(frozen=True)
class ColmapCamera:
    """A camera as COLMAP states it, the corner of the first pixel at (0, 0)."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class ColmapImage:
    """An image's ``name``, its camera's number, and its pose (4, 4) camera-to-world."""

    name: str
    camera: int
    pose: np.ndarray


def read_cameras(path: Path) -> dict[int, ColmapCamera]:
    """The cameras of ``cameras.txt`` by number; ValueError names the line that is damaged."""
    cameras = {}
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        try:
            if len(words) < _CAMERA_FIELDS:
                raise ValueError(f"{len(words)} words")
            params = tuple(float(word) for word in words[4:])
            cameras[int(words[0])] = ColmapCamera(words[1], int(words[2]), int(words[3]), params)
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: expected 'id MODEL width height parameters...' ({error})"
            ) from error
    return cameras


def read_images(path: Path) -> list[ColmapImage]:
    """The images of ``images.txt``; their points, every second line, which may be empty, are not
    read. ValueError names the line that is damaged."""
    images = []
    lines = _lines(path)
    for number, line in lines:
        words = line.split(maxsplit=_IMAGE_FIELDS - 1)
        if not words:
            continue
        try:
            if len(words) < _IMAGE_FIELDS:
                raise ValueError(f"{len(words)} words")
            w, x, y, z, *translation = (float(word) for word in words[1:8])
            world_to_camera = np.eye(4)
            world_to_camera[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
            world_to_camera[:3, 3] = translation
            images.append(
                ColmapImage(words[9].strip(), int(words[8]), np.linalg.inv(world_to_camera))
            )
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: expected 'id qw qx qy qz tx ty tz camera name' ({error})"
            ) from error
        next(lines, None)
    return images


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, comments left out, empty ones kept."""
    with path.open() as file:
        for number, line in enumerate(file, 1):
            if not line.startswith("#"):
                yield number, line
