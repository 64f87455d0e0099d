"""Waymo's Perception set as it is released: TFRecords of protocol buffers, written byte by byte.

Field numbers are those of ``dataset.proto``, stated here once more, so that a wrong one in the
reader is found.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dataset_contract import Case
from PIL import Image
from scipy.spatial.transform import Rotation
from world import World

from datasets_preprocess.preprocess_waymo import main

FRONT, FRONT_LEFT = 1, 2
TOP, LASER_FRONT = 1, 2
# Pixels of the cameras, and f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3; their pixels' corners count.
SIZES = {FRONT: (168, 124), FRONT_LEFT: (168, 108)}
LENSES = {
    FRONT: (118.0, 119.0, 85.5, 60.0, -0.06, 0.01, 0.001, -0.0015, 0.0),
    FRONT_LEFT: (116.0, 116.0, 82.0, 55.5, -0.04, 0.0, -0.001, 0.001, 0.002),
}
_TO_WAYMO = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
# Columns and rows of the lidars: enough to fill every pixel of the images made smaller.
_TOP_CELLS, _FRONT_CELLS = (130, 840), (20, 300)


def rigid(euler: Sequence[float], place: Sequence[float]) -> np.ndarray:
    """(4, 4) of a turn about x, then y, then z (fixed axes, radians), and a translation."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", euler).as_matrix()
    pose[:3, 3] = place
    return pose


GLOBAL = rigid((0, 0, 0.7), (1820.0, -960.0, 31.0))
EXTRINSICS = {
    FRONT: rigid((0.01, 0.02, 0.03), (1.5, 0.05, 2.0)),
    FRONT_LEFT: rigid((0.0, 0.01, 0.35), (1.48, 0.1, 2.01)),
}
LASERS = {
    TOP: rigid((0, 0, 0.4), (1.5, 0.04, 2.06)),
    LASER_FRONT: rigid((0, 0, -0.1), (1.53, 0, 1.96)),
}
INCLINATIONS = 0.55 * np.sin(np.linspace(-1.3, 1.3, _TOP_CELLS[0]))


def vehicle_pose(camera_pose: np.ndarray) -> np.ndarray:
    """Vehicle-to-global where the front camera is at ``camera_pose`` of the world."""
    return GLOBAL @ camera_pose @ np.linalg.inv(EXTRINSICS[FRONT] @ _TO_WAYMO)


def write_segment(path: Path, poses: Sequence[np.ndarray], spoil: dict[int, str] | None = None):
    """A segment of views of the world; ``spoil`` names frames and what is wrong with them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [
        _frame(path.stem, number, pose, (spoil or {}).get(number))
        for number, pose in enumerate(poses)
    ]
    with path.open("wb") as file:
        for record in records:
            file.write(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0))


def build(folder: Path) -> dict[str, object]:
    poses = World().poses(4)
    write_segment(folder / "raw/training/segment-1_000_020_with_camera_labels.tfrecord", poses)
    root = folder / "processed"
    options = ["--waymo_dir", str(folder / "raw"), "--output_dir", str(root), "--max_side", "126"]
    assert main([*options, "--max_overlap", "1"]) == 0
    return {"ROOT": root}


def _frame(segment: str, number: int, pose: np.ndarray, spoiled: str | None) -> bytes:
    vehicle = vehicle_pose(pose)
    calibrations = b"".join(
        _bytes(2, _camera_calibration(camera, LENSES[camera])) for camera in SIZES
    )
    lasers = _bytes(3, _laser_calibration(TOP)) + _bytes(3, _laser_calibration(LASER_FRONT))
    images = b"".join(_bytes(4, _image(camera, vehicle, spoiled)) for camera in SIZES)
    ranges = b"".join(_bytes(5, _laser(laser, vehicle, spoiled)) for laser in LASERS)
    context = _bytes(1, segment.encode()) + calibrations + lasers
    stamp = _varint(2, 1_550_000_000_000_000 + 100_000 * number)
    labels = _bytes(6, b"\x0a\x03abc")  # a field that is passed over
    return _bytes(1, context) + stamp + _bytes(3, _transform(vehicle)) + images + ranges + labels


def _camera_calibration(camera: int, lens: Sequence[float]) -> bytes:
    width, height = SIZES[camera]
    numbers = b"".join(_double(2, value) for value in lens)
    extrinsic = _bytes(3, _transform(EXTRINSICS[camera]))
    return _varint(1, camera) + numbers + extrinsic + _varint(4, width) + _varint(5, height)


def _laser_calibration(laser: int) -> bytes:
    if laser == TOP:
        beams = b"".join(_double(2, value) for value in INCLINATIONS)
    else:
        beams = _double(3, -0.3) + _double(4, 0.2)
    return _varint(1, laser) + beams + _bytes(5, _transform(LASERS[laser]))


def _image(camera: int, vehicle: np.ndarray, spoiled: str | None) -> bytes:
    """The distorted image, as JPEG."""
    width, height = SIZES[camera]
    pixels = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)
    rays = np.concatenate([_undistorted(pixels, LENSES[camera]), np.ones((height, width, 1))], -1)
    pose = np.linalg.inv(GLOBAL) @ vehicle @ EXTRINSICS[camera] @ _TO_WAYMO
    encoded = io.BytesIO()
    rgb, _ = World().render_rays(pose, rays)
    Image.fromarray(rgb).save(encoded, "JPEG", quality=97, subsampling=0)
    data = encoded.getvalue()
    if spoiled == "jpeg" and camera == FRONT_LEFT:
        data = data[: len(data) // 2]
    return _varint(1, camera) + _bytes(2, data) + _bytes(3, _transform(vehicle))


def _laser(laser: int, vehicle: np.ndarray, spoiled: str | None) -> bytes:
    rows, columns = _TOP_CELLS if laser == TOP else _FRONT_CELLS
    if laser == TOP:
        inclination = INCLINATIONS[::-1]
    else:
        inclination = 0.2 - (np.arange(rows) + 0.5) / rows * 0.5
    extrinsic = LASERS[laser]
    yaw = np.arctan2(extrinsic[1, 0], extrinsic[0, 0])
    azimuth = np.pi - (np.arange(columns) + 0.5) / columns * 2 * np.pi - yaw
    level = np.cos(inclination)[:, None]
    up = np.broadcast_to(np.sin(inclination)[:, None], (rows, columns))
    rays = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), up], -1)
    ranges, points = np.empty((rows, columns), np.float32), np.empty((rows, columns, 3))
    poses = np.empty((rows, columns, 6), np.float32)
    # The top lidar turns while the car drives: each quarter of the turn has its own pose.
    for part in np.array_split(np.arange(columns), 4 if laser == TOP else 1):
        step = 0.04 * part[0] / columns if laser == TOP else 0.0
        moved = vehicle @ rigid((0, 0, 0), (step, 0, 0))
        poses[:, part, :3] = Rotation.from_matrix(moved[:3, :3]).as_euler("xyz")
        poses[:, part, 3:] = moved[:3, 3]
        sensor = np.linalg.inv(GLOBAL) @ moved @ extrinsic
        _, length = World().render_rays(sensor, rays[:, part])
        ranges[:, part] = length
        points[:, part] = sensor[:3, 3] + (rays[:, part] * length[..., None]) @ sensor[:3, :3].T
    ranges[0] = -1  # no return
    if spoiled == "no depth":
        ranges[:] = -1
    image = np.stack([ranges, ranges * 0, ranges * 0, ranges * 0], -1)
    seen = _projections(points, vehicle)
    returned = _bytes(2, zlib.compress(_matrix_float(image))) + _bytes(
        3, zlib.compress(_matrix_int(seen))
    )
    if laser == TOP:
        returned += _bytes(4, zlib.compress(_matrix_float(poses)))
    return _varint(1, laser) + _bytes(2, returned)


def _projections(points: np.ndarray, vehicle: np.ndarray) -> np.ndarray:
    """Cameras and pixels (H, W, 6) that see points (H, W, 3) of the world."""
    seen = np.zeros((*points.shape[:2], 6), int)
    for camera, (width, height) in SIZES.items():
        pose = np.linalg.inv(GLOBAL) @ vehicle @ EXTRINSICS[camera] @ _TO_WAYMO
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        x, y = np.moveaxis(local[..., :2] / local[..., 2:], -1, 0)
        u, v = np.moveaxis(_distorted(np.stack([x, y], -1), LENSES[camera]), -1, 0)
        inside = (local[..., 2] > 0.1) & (np.hypot(x, y) < 1.2)
        inside &= (u >= 0) & (u < width) & (v >= 0) & (v < height)
        found = np.stack([np.full(u.shape, camera), u, v], -1)
        second = inside & (seen[..., 0] > 0)
        for place, where in ((slice(3, 6), second), (slice(0, 3), inside & ~second)):
            seen[where, place] = found[where].astype(int)
    return seen


def _distorted(rays: np.ndarray, lens: Sequence[float]) -> np.ndarray:
    """Pixels (..., 2) of rays (..., 2), x and y at z = 1, in OpenCV's model of lenses."""
    fx, fy, cx, cy, k1, k2, p1, p2, k3 = lens
    x, y = np.moveaxis(rays, -1, 0)
    r = x**2 + y**2
    radial = 1 + k1 * r + k2 * r**2 + k3 * r**3
    u = x * radial + 2 * p1 * x * y + p2 * (r + 2 * x**2)
    v = y * radial + p1 * (r + 2 * y**2) + 2 * p2 * x * y
    return np.stack([fx * u + cx, fy * v + cy], -1)


def _undistorted(pixels: np.ndarray, lens: Sequence[float]) -> np.ndarray:
    """The rays whose pixels these are, by iteration."""
    focal = np.array(lens[:2])
    rays = (pixels - lens[2:4]) / focal
    for _ in range(30):
        rays = rays + (pixels - _distorted(rays, lens)) / focal
    return rays


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _double(field: int, value: float) -> bytes:
    return _number(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _transform(matrix: np.ndarray) -> bytes:
    return b"".join(_double(1, value) for value in matrix.ravel())


def _matrix_float(array: np.ndarray) -> bytes:
    return _bytes(1, array.astype("<f4").tobytes()) + _bytes(2, _shape(array))


def _matrix_int(array: np.ndarray) -> bytes:
    return _bytes(1, b"".join(map(_number, array.ravel().tolist()))) + _bytes(2, _shape(array))


def _shape(array: np.ndarray) -> bytes:
    return b"".join(_varint(1, size) for size in array.shape)


CASE = Case(
    name="Waymo",
    build=build,
    spec="Waymo(ROOT='{ROOT}')",
    metric=True,
    portrait=False,
    frame=np.linalg.inv(GLOBAL) @ vehicle_pose(World().poses(1)[0]),
)
