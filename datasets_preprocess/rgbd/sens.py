"""ScanNet's ``<scene>.sens``: a recording in one file (Dai et al., "ScanNet", CVPR 2017; the format
is documented by the SensReader of the data set's repository).

Little endian: version u32 (4), the sensor's name (u64 length, bytes), intrinsic and extrinsic 4x4
float32 of colour, the same of depth, compression i32 of colour (0 raw, 1 PNG, 2 JPEG) and of depth
(0 raw, 1 zlib, 2 OCCI), width and height u32 of colour and of depth, steps a metre f32, number of
frames u64; then each frame: camera-to-world 4x4 float32 (-inf where tracking failed), two times
u64, u64 sizes of colour and depth, and their bytes. Accelerations that follow are not read.
"""

import struct
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from datasets_preprocess.rgbd.recording import RawFrame, Recording, RgbdFrame

VERSION = 4
_PNG, _JPEG = 1, 2
_RAW, _ZLIB = 0, 1
_MOST_NAME = 1024


@dataclass(frozen=True)
class SensFrame(RawFrame):
    """A frame inside a .sens file: where its colour begins, and the sizes in bytes."""

    offset: int
    color_bytes: int
    depth_bytes: int


@dataclass(frozen=True)
class SensHeader:
    """Intrinsics (3, 3) of both cameras, shape (height, width) of depth, and how both are coded."""

    color_intrinsics: np.ndarray
    depth_intrinsics: np.ndarray
    depth_shape: tuple[int, int]
    depth_compression: int
    steps_per_metre: float
    num_frames: int


def read_sens(folder: Path, name: str, intrinsics: np.ndarray | None, frame_step: int) -> Recording:
    """The frames of the .sens file in ``folder``, named by their numbers as the export names them.

    Raises ValueError for a file that is damaged or of another version or compression.
    """
    path = sorted(folder.glob("*.sens"))[0]
    size = path.stat().st_size
    with path.open("rb") as file:
        header = _read_header(path, file)
        depth_intrinsics = header.depth_intrinsics if intrinsics is None else intrinsics
        recording = Recording(name, folder, "sens", depth_intrinsics, [])
        recording.color_intrinsics = header.color_intrinsics
        recording.load = partial(_load, header=header, intrinsics=depth_intrinsics)
        for number in range(header.num_frames):
            try:
                pose = _matrix(file)
                _, _, color_bytes, depth_bytes = _unpack(file, "<4Q")
            except EOFError:
                recording.skip("missing at the end of a cut .sens file", f"{path.name}: {number}")
                break
            offset = file.tell()
            end = offset + color_bytes + depth_bytes
            if end > size:
                recording.skip("missing at the end of a cut .sens file", f"{path.name}: {number}")
                break
            if number % frame_step == 0:
                spans = (offset, color_bytes, depth_bytes)
                recording.add(SensFrame(str(number), path, path, pose, *spans))
            file.seek(end)
    return recording


def _read_header(path: Path, file: BinaryIO) -> SensHeader:
    try:
        (version,) = _unpack(file, "<I")
        if version != VERSION:
            raise ValueError(f"{path}: version {version} of the .sens format, expected {VERSION}")
        (length,) = _unpack(file, "<Q")
        if length > _MOST_NAME:
            raise ValueError(f"{path}: no .sens file, its sensor's name has {length} bytes")
        file.read(length)
        color, color_extrinsic, depth, depth_extrinsic = (_matrix(file) for _ in range(4))
        color_compression, depth_compression = _unpack(file, "<2i")
        _, _, depth_width, depth_height = _unpack(file, "<4I")
        (steps_per_metre,) = _unpack(file, "<f")
        (num_frames,) = _unpack(file, "<Q")
    except EOFError as error:
        raise ValueError(f"{path}: ends within the header; download it again") from error
    if color_compression not in (_PNG, _JPEG) or depth_compression not in (_RAW, _ZLIB):
        raise ValueError(
            f"{path}: colour compression {color_compression} and depth compression "
            f"{depth_compression}; read are PNG (1) or JPEG (2), and raw (0) or zlib (1)"
        )
    if not np.allclose(color_extrinsic, depth_extrinsic, atol=1e-4):
        raise ValueError(
            f"{path}: colour and depth camera are at two places, which ScanNet's are not; export "
            "it and give --color_intrinsics and --color_offset to preprocess_rgbd.py"
        )
    if not steps_per_metre > 0:
        raise ValueError(f"{path}: depth has {steps_per_metre} steps a metre; download it again")
    shape = (depth_height, depth_width)
    intrinsics = (color[:3, :3], depth[:3, :3])
    return SensHeader(*intrinsics, shape, depth_compression, steps_per_metre, num_frames)


def _load(frame: SensFrame, *, header: SensHeader, intrinsics: np.ndarray) -> RgbdFrame:
    with frame.color.open("rb") as file:
        file.seek(frame.offset)
        color, depth = file.read(frame.color_bytes), file.read(frame.depth_bytes)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(color, np.uint8), flags) if color else None
    if bgr is None:
        raise ValueError(f"{frame.color}: frame {frame.name} has no readable colour")
    try:
        raw = zlib.decompress(depth) if header.depth_compression == _ZLIB else depth
        steps = np.frombuffer(raw, "<u2").reshape(header.depth_shape)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"{frame.color}: frame {frame.name}: unreadable depth ({error})") from None
    metres = np.where(steps < 65535, steps, 0).astype(np.float32) / header.steps_per_metre
    return RgbdFrame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), metres.astype(np.float32), intrinsics)


def _matrix(file: BinaryIO) -> np.ndarray:
    return np.array(_unpack(file, "<16f"), np.float64).reshape(4, 4)


def _unpack(file: BinaryIO, layout: str) -> tuple:
    content = file.read(struct.calcsize(layout))
    if len(content) < struct.calcsize(layout):
        raise EOFError
    return struct.unpack(layout, content)
