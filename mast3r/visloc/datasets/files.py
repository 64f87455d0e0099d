"""What readers of data sets share: text by lines, names, poses and sizes, with faults named.

Data sets come from elsewhere and by many hands: whatever is read here is either sound or refused
with the file, and where it is text the line.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image
from scipy.spatial.transform import Rotation

from dust3r.utils.pixels import FORMATS, MAX_PIXELS

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_LINE = 10_000_000
_LISTED = 5
_RIGID = 0.01
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Line:
    """A line of a text file, numbered from 1, without the blanks around it."""

    path: Path
    number: int
    text: str

    @property
    def fields(self) -> list[str]:
        return self.text.split()

    def error(self, fault: str) -> ValueError:
        """An error that says where it is."""
        return ValueError(f"{self.path}, line {self.number}: {fault}; the line is {self._shown!r}")

    def numbers(self, fields: Sequence[str], what: str) -> np.ndarray:
        """Finite float64 (len(fields),).

        Raises:
            ValueError: one of them is none.
        """
        try:
            values = np.array([float(field) for field in fields])
        except ValueError as error:
            raise self.error(f"{what} must be numbers ({error})") from None
        if not np.isfinite(values).all():
            raise self.error(f"{what} must be finite")
        return values

    def count(self, field: str, what: str, most: int) -> int:
        """A whole number from 0 to ``most``.

        Raises:
            ValueError: it is none.
        """
        if not (field.isascii() and field.isdigit() and len(field) < 19 and int(field) <= most):
            raise self.error(f"{what} must be a whole number from 0 to {most}, got {field[:40]!r}")
        return int(field)

    @property
    def _shown(self) -> str:
        return self.text if len(self.text) <= 80 else f"{self.text[:80]}..."


def read_lines(path: Path, layout: str) -> Iterator[Line]:
    """The lines of a UTF-8 file that are not blank and no comment (#), one after the other.

    Args:
        layout: what the data set should look like, in words, for the error of a missing file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is no text, or a line has more than ``MAX_LINE`` characters.
    """
    require_file(path, layout)
    with path.open(encoding="utf-8-sig", errors="strict") as file:
        number = 0
        while True:
            number += 1
            try:
                text = file.readline(MAX_LINE + 1)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not a text file ({error})") from error
            if not text:
                return
            line = Line(path, number, text.strip())
            if len(text) > MAX_LINE or "\0" in text:
                raise line.error("not a text file, or damaged")
            if line.text and not line.text.startswith("#"):
                yield line


def open_root(root: str | Path, layout: str) -> Path:
    """A data set's folder, absolute, so that it has a name even where it is given as '.'.

    Raises:
        FileNotFoundError: it is none; the message says the layout expected.
    """
    return require_folder(Path(root).absolute(), layout)


def require_file(path: Path, layout: str) -> Path:
    """The path, of an existing file.

    Raises:
        FileNotFoundError: it is none; the message says the layout expected.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected {layout}")
    return path


def require_folder(path: Path, layout: str) -> Path:
    """The path, of an existing folder.

    Raises:
        FileNotFoundError: it is none; the message says the layout expected.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}; expected {layout}")
    return path


def inside(root: Path, name: str, where: Line | Path | str) -> Path:
    """The file below ``root`` that a data set calls ``name``, with / or \\ between its parts.

    Raises:
        ValueError: the name leads, or could lead, out of ``root``.
    """
    # Windows' rules take both separators, and know drives.
    parts = PureWindowsPath(name)
    if not name or parts.anchor or ".." in parts.parts or "\0" in name:
        fault = f"the name {name[:200]!r} does not lie below {root}"
        raise where.error(fault) if isinstance(where, Line) else ValueError(f"{where}: {fault}")
    return root / PurePosixPath(*parts.parts)


def every(items: Iterable[T], step: int, what: str) -> list[T]:
    """Each ``step``-th item, from the first on.

    Raises:
        ValueError: ``step``, the option ``what``, is no whole number from 1 on.
    """
    if not isinstance(step, int) or step < 1:
        raise ValueError(f"{what} must be a whole number, 1 (all) or more, got {step!r}")
    return list(items)[::step]


def listed(names: Iterable[str]) -> str:
    """Some names in words, the first few of many."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def pose_of(quaternion: np.ndarray, centre: np.ndarray, line: Line) -> np.ndarray:
    """Camera-to-world (4, 4) of a world-to-camera quaternion (w, x, y, z) and the camera's centre.

    Raises:
        ValueError: the quaternion's length is far from 1.
    """
    if abs(np.linalg.norm(quaternion) - 1) > _RIGID:
        raise line.error(f"the quaternion {quaternion.tolist()} has not length 1")
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(np.roll(quaternion, -1)).as_matrix().T
    pose[:3, 3] = centre
    return pose


def check_rigid(pose: np.ndarray, where: str) -> np.ndarray:
    """The (4, 4) float64 matrix, of a rotation and a translation.

    Raises:
        ValueError: it is none, or is not finite; ``where`` begins the message.
    """
    pose = np.asarray(pose, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ValueError(f"{where}: a pose must be a finite (4, 4) matrix, got {pose.tolist()}")
    rotation = pose[:3, :3]
    rigid = (
        np.allclose(rotation.T @ rotation, np.eye(3), atol=_RIGID)
        and np.linalg.det(rotation) > 0
        and np.allclose(pose[3], [0, 0, 0, 1])
    )
    if not rigid:
        raise ValueError(
            f"{where}: the pose is not rigid; expected a rotation and a translation, camera to "
            f"world, got {pose.tolist()}"
        )
    return pose


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image as a person sees it, from its header alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, or has more than ``MAX_PIXELS``.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
            kind = image.format
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path}") from None
    except Exception as error:
        # Each of Pillow's formats has its own kinds of errors at damaged files.
        raise ValueError(f"cannot read the image {path}: {error}") from error
    if kind not in FORMATS or width * height > MAX_PIXELS:
        raise ValueError(f"cannot read the image {path}: {kind}, {width}x{height} pixels")
    return (height, width) if turned else (width, height)


def check_size(path: Path, size: tuple[int, int], camera: str) -> None:
    """Refuse an image that is not of the size its camera has, which would misplace every pixel.

    Raises:
        FileNotFoundError, ValueError: as ``image_size``.
        ValueError: the sizes differ; ``camera`` says where the camera is from.
    """
    found = image_size(path)
    if found == size:
        return
    mend = "give the images that the cameras were calibrated for"
    if found == size[::-1]:
        mend = "its EXIF tag turns it by 90 degrees, and the camera is of the image without it: "
        mend += "remove the tag (exiftool -Orientation= FILE)"
    raise ValueError(
        f"{path} has {found[0]}x{found[1]} pixels, but its camera in {camera} {size[0]}x{size[1]}; "
        f"{mend}"
    )


def read_pairs(path: Path, queries: Iterable[str], images: Iterable[str]) -> dict[str, list[str]]:
    """Map images to compare with a query, by its name, of lines 'query image', best first.

    Names that are neither a query nor in the map, such as those left out by a step, are dropped.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: a line has not two names, or none of the file's names fits.
    """
    queries, images = set(queries), set(images)
    pairs: dict[str, list[str]] = {}
    line = None
    for line in read_lines(path, "a text file of lines 'query image'"):
        if len(line.fields) != 2:
            raise line.error("expected two names, of a query and of a map image")
        query, image = line.fields
        if query in queries and image in images and image not in pairs.setdefault(query, []):
            pairs[query].append(image)
    if not any(pairs.values()):
        found = f"its last line is {line.text!r}" if line else "it has no line"
        raise ValueError(
            f"{path}: no line names a query and a map image, such as "
            f"'{min(queries, default='query')} {min(images, default='image')}'; {found}"
        )
    lacking = sorted(queries - {query for query, found in pairs.items() if found})
    if lacking:
        log.warning("%s has no pair for %d queries: %s", path, len(lacking), listed(lacking))
    return pairs
