"""Whether COLMAP's binary files hold what they say, before COLMAP reads them.

Its readers take any count at its word: where a file is truncated or no such file, they go on for
billions of records of zeros. The records are those of https://colmap.github.io/format.html.
"""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

import pycolmap

_LONGEST_NAME = 4096
_POSE = 56  # a quaternion and a translation of float64


def check_binary_model(folder: Path) -> None:
    """Walk over the records of the ``.bin`` files of a COLMAP model that are there.

    Raises:
        ValueError: one ends within a record, or goes on after the last.
    """
    for name, skip in _RECORDS.items():
        path = folder / name
        if path.is_file():
            _check_file(path, skip)


class _Cursor:
    """A place in a file's bytes that moves on with what is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 0

    def number(self, kind: str) -> int:
        """The next number, of a kind of ``struct``."""
        (value,) = struct.unpack_from(kind, self.data, self.place)
        self.place += struct.calcsize(kind)
        return value

    def skip(self, size: int) -> None:
        self.place += size

    def skip_name(self) -> None:
        end = self.data.find(b"\0", self.place, self.place + _LONGEST_NAME)
        if end < 0:
            raise struct.error("a name does not end")
        self.place = end + 1


def _check_file(path: Path, skip: Callable[[_Cursor], None]) -> None:
    size = path.stat().st_size
    if size < 8:
        raise ValueError(f"{path} is damaged: {size} bytes; copy it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        count, record = cursor.number("<Q"), 0
        try:
            while record < count and cursor.place <= size:
                skip(cursor)
                record += 1
        except struct.error:
            cursor.place = size + 1
    if cursor.place != size:
        fault = "ends within" if cursor.place > size else "goes on after"
        raise ValueError(
            f"{path} is damaged, or no file of COLMAP: it {fault} record {record} of {count}; "
            "copy it again"
        )


def _skip_camera(cursor: _Cursor) -> None:
    cursor.skip(4)
    model = cursor.number("<i")
    if model not in _PARAMETERS:
        raise struct.error(f"no camera model {model}")
    cursor.skip(16 + 8 * _PARAMETERS[model])


def _skip_image(cursor: _Cursor) -> None:
    cursor.skip(4 + _POSE + 4)
    cursor.skip_name()
    cursor.skip(24 * cursor.number("<Q"))


def _skip_point(cursor: _Cursor) -> None:
    cursor.skip(43)
    cursor.skip(8 * cursor.number("<Q"))


def _skip_rig(cursor: _Cursor) -> None:
    cursor.skip(4)
    sensors = cursor.number("<I")
    cursor.skip(8 * min(sensors, 1))
    for _ in range(sensors - 1):
        cursor.skip(8)
        cursor.skip(_POSE * min(cursor.number("<B"), 1))


def _skip_frame(cursor: _Cursor) -> None:
    cursor.skip(8 + _POSE)
    cursor.skip(16 * cursor.number("<I"))


_PARAMETERS = {
    int(model): len(pycolmap.Camera.create_from_model_id(1, model, 1.0, 1, 1).params)
    for model in pycolmap.CameraModelId.__members__.values()
    if model != pycolmap.CameraModelId.INVALID
}
_RECORDS = {
    "cameras.bin": _skip_camera,
    "images.bin": _skip_image,
    "points3D.bin": _skip_point,
    "rigs.bin": _skip_rig,
    "frames.bin": _skip_frame,
}
