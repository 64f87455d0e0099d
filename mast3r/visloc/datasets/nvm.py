"""Models of VisualSFM (Wu, "Towards Linear-time Incremental Structure from Motion", 3DV 2013).

A file ``.nvm``, after its line ``NVM_V3``: a count of cameras and a line of each, 'name focal qw qx
qy qz x y z radial 0' (world-to-camera rotation, camera centre); a count of points and a line of
each, 'x y z r g b', a count of measurements and 'image feature x y' of each, pixels from the
image's centre. Radial distortion is of measurements: a measured place m, in units of the focal
length, is where m (1 + radial |m|^2) would be seen without distortion.
"""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pycolmap
from scipy.interpolate import pade

from mast3r.visloc.datasets.files import Line, pose_of, read_lines
from mast3r.visloc.scene import HALF_PIXEL, Camera, Landmarks

log = logging.getLogger(__name__)

LAYOUT = "a model of VisualSFM, which begins with NVM_V3"
MAX_CAMERAS = 1_000_000
MAX_POINTS = 100_000_000
# Of the inverse of y = x (1 - x^2): x / y in powers of y^2.
_INVERSE = (1, 1, 3, 12, 55, 273, 1428)


@dataclass(frozen=True)
class NvmCamera:
    """A camera's line.

    Attributes:
        index: its place in the file, which measurements refer to.
        focal: pixels.
        radial: distortion of measurements, in units of the focal length.
        pose: (4, 4) camera-to-world.
    """

    index: int
    focal: float
    radial: float
    pose: np.ndarray

    def camera(self, size: tuple[int, int]) -> Camera:
        """Of an image of (width, height), whose centre is the principal point.

        The distortion, whose inverse VisualSFM states, becomes a rational function in COLMAP's
        model FULL_OPENCV that agrees to 1e-3 pixels of a camera of 1700 where radial |m|^2 is
        within 0.08.
        """
        width, height = size
        places = [self.focal, self.focal, width / 2, height / 2]
        if not self.radial:
            model = pycolmap.Camera(model="PINHOLE", width=width, height=height, params=places)
            return Camera(model)
        above, below = pade(_INVERSE, 3)
        powers = (-self.radial) ** np.arange(1, 4)
        k1, k2, k3 = above.coef[-2::-1] / below.coef[-1] * powers
        k4, k5, k6 = below.coef[-2::-1] / below.coef[-1] * powers
        params = [*places, k1, k2, 0, 0, k3, k4, k5, k6]
        return Camera(
            pycolmap.Camera(model="FULL_OPENCV", width=width, height=height, params=params)
        )


class Nvm:
    """The first model of a file; its points are read when landmarks are first asked for.

    Args:
        path: of the file.
        layout: that it is part of, for the error where it is missing.

    Attributes:
        cameras: by their images' names, with / between parts and without suffix, because data sets
            convert images after VisualSFM saw them.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is no such file, is damaged, or has one camera fixed for all (FixedK).
    """

    def __init__(self, path: Path, layout: str = LAYOUT) -> None:
        self.path = path
        self._layout = layout
        lines = self._lines()
        count = self._camera_count(lines)
        self.cameras: dict[str, NvmCamera] = {}
        for index in range(count):
            line = self._next(lines, f"camera {index + 1} of {count}")
            name, camera = _parse_camera(line, index)
            if self.cameras.setdefault(name, camera) is not camera:
                raise line.error(f"the image {name} is there a second time")

    def landmarks(self, camera: NvmCamera, size: tuple[int, int]) -> Landmarks:
        """The points that a camera measured in its image of (width, height).

        Raises:
            ValueError: the points of the file are damaged.
        """
        table = self._measurements
        here = slice(*np.searchsorted(table.image, [camera.index, camera.index + 1]))
        centre = np.array(size) / 2 - HALF_PIXEL
        return Landmarks(table.place[here] + centre, table.points[table.point[here]])

    @functools.cached_property
    def _measurements(self) -> "_Measurements":
        log.info("reading the points of %s", self.path)
        lines = self._lines()
        cameras = self._camera_count(lines)
        for index in range(cameras):
            self._next(lines, f"camera {index + 1} of {cameras}")
        count = self._count(lines, "points", MAX_POINTS)
        points, rows, point = [], [], []
        for index in range(count):
            line = self._next(lines, f"point {index + 1} of {count}")
            values = line.numbers(line.fields, "a point's line")
            seen = values[7:].reshape(-1, 4) if len(values) % 4 == 3 else None
            if seen is None or len(values) < 7 or values[6] != len(seen):
                raise line.error("expected 'x y z r g b', a count n, and n times 'image index x y'")
            if ((seen[:, 0] < 0) | (seen[:, 0] >= cameras) | (seen[:, 0] % 1 != 0)).any():
                raise line.error(f"images are counted from 0 to {cameras - 1}")
            points.append(values[:3])
            rows.append(seen[:, [0, 2, 3]])
            point.append(np.full(len(seen), index))
        table = np.concatenate([np.empty((0, 3)), *rows])
        order = np.argsort(table[:, 0], kind="stable")
        return _Measurements(
            np.array(points).reshape(-1, 3),
            table[order, 0].astype(int),
            table[order, 1:],
            np.concatenate([np.empty(0, int), *point])[order],
        )

    def _lines(self) -> Iterator[Line]:
        lines = read_lines(self.path, self._layout)
        head = self._next(lines, "NVM_V3")
        if head.fields[0] != "NVM_V3":
            raise head.error(f"expected {LAYOUT}")
        if len(head.fields) > 1:
            raise head.error("one calibration fixed for all cameras (FixedK) is not read")
        return lines

    def _camera_count(self, lines: Iterator[Line]) -> int:
        return self._count(lines, "cameras", MAX_CAMERAS)

    def _count(self, lines: Iterator[Line], what: str, most: int) -> int:
        line = self._next(lines, f"the count of {what}")
        return line.count(line.text, f"the count of {what}", most)

    def _next(self, lines: Iterator[Line], what: str) -> Line:
        line = next(lines, None)
        return line if line is not None else self._ended(what)

    def _ended(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path} ends before {what}: it is truncated, copy it again")


@dataclass(frozen=True)
class _Measurements:
    """M measurements of P points (P, 3), in the order of images.

    ``image`` (M,) and ``point`` (M,) are places in the file, ``place`` (M, 2) pixels from the
    image's centre.
    """

    points: np.ndarray
    image: np.ndarray
    place: np.ndarray
    point: np.ndarray


def image_key(name: str) -> str:
    """An image's name as ``Nvm.cameras`` has it."""
    # VisualSFM writes a blank in a name as a double quote.
    name = name.replace("\\", "/").replace('"', " ").removeprefix("./")
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and "/" not in suffix else name


def _parse_camera(line: Line, index: int) -> tuple[str, NvmCamera]:
    name, *stated = line.text.rsplit(maxsplit=10)
    if len(stated) != 10:
        raise line.error("expected 'name focal qw qx qy qz x y z radial 0'")
    focal, *rest = line.numbers(stated, "a camera's values")
    if focal <= 0:
        raise line.error(f"the focal length must be positive, got {focal}")
    pose = pose_of(np.array(rest[:4]), np.array(rest[4:7]), line)
    return image_key(name), NvmCamera(index, float(focal), float(rest[7]), pose)
