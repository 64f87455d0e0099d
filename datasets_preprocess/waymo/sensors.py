"""Cameras and lidar points of a Waymo frame, in OpenCV's axes and one world frame.

Waymo's vehicle and sensor frames have x forward, y left, z up; poses are vehicle-to-global, in
metres. What the fields mean is said in ``dataset.proto`` of
https://github.com/waymo-research/waymo-open-dataset and in Sun et al., CVPR 2020.
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from google.protobuf.message import Message
from PIL import Image
from scipy.spatial.transform import Rotation

from datasets_preprocess.waymo.records import matrix, transform
from dust3r.utils.geometry import geotrf

# Waymo's camera axes (x forward, y left, z up) of OpenCV's (x right, y down, z forward).
_OPENCV_TO_WAYMO = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
_HALF_PIXEL = 0.5
_COEFFICIENTS = 5
_ONE_SURFACE = 1.05


@dataclass(frozen=True)
class LidarPoints:
    """Points (N, 3) in the global frame, metres, and where the cameras saw them.

    ``projections`` (N, 6) int: of up to two cameras each the camera's number, 0 for none, and the
    pixel's x and y in the camera's image as recorded.
    """

    points: np.ndarray
    projections: np.ndarray


@dataclass(frozen=True)
class CameraView:
    """An undistorted image of a camera with the depth of the lidar points it saw.

    ``rgb`` (H, W, 3) uint8; ``depth`` (H, W) z in metres, 0 = none; ``intrinsics`` (3, 3), first
    pixel's centre at (0, 0); ``pose`` (4, 4) camera-to-global, OpenCV's axes.
    """

    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray


def lidar_points(frame: Message) -> LidarPoints:
    """All points of all lidars of a ``Frame``, of both returns.

    Raises ValueError where a lidar is not calibrated or a range image is damaged.
    """
    calibrations = {laser.name: laser for laser in frame.context.laser_calibrations}
    points, projections = [np.empty((0, 3))], [np.empty((0, 6), int)]
    for laser in frame.lasers:
        if laser.name not in calibrations:
            raise ValueError(f"lidar {laser.name} has no calibration")
        poses = laser.ri_return1.range_image_pose_compressed
        pose = _cell_poses(poses) if poses else transform(frame.pose)
        for returned in (laser.ri_return1, laser.ri_return2):
            if not (returned.range_image_compressed and returned.camera_projection_compressed):
                continue
            ranges = matrix(returned.range_image_compressed, "MatrixFloat")[..., 0]
            seen = matrix(returned.camera_projection_compressed, "MatrixInt32")
            cells = (ranges > 0) & (seen[..., 0] > 0)
            in_vehicle = _rays(calibrations[laser.name], ranges.shape) * ranges[..., None]
            in_vehicle += transform(calibrations[laser.name].extrinsic)[:3, 3]
            in_world = np.einsum("...ij,...j->...i", pose[..., :3, :3], in_vehicle)
            points.append((in_world + pose[..., :3, 3])[cells])
            projections.append(seen[cells])
    return LidarPoints(np.concatenate(points), np.concatenate(projections))


def camera_view(frame: Message, camera: int, lidar: LidarPoints, max_side: int) -> CameraView:
    """The view of a camera of a ``Frame``, undistorted and at most ``max_side`` pixels long.

    Depth is put where Waymo says that the camera saw the point, which takes its rolling shutter
    into account. Raises ValueError where the camera has no image, no calibration, or a damaged one.
    """
    image = next((image for image in frame.images if image.name == camera), None)
    calibration = next((c for c in frame.context.camera_calibrations if c.name == camera), None)
    if image is None or calibration is None:
        raise ValueError(f"camera {camera} has no image or no calibration")
    rgb = _decoded(image.image)
    size = (calibration.width, calibration.height)
    if rgb.shape[1::-1] != size:
        raise ValueError(f"the image is {rgb.shape[1]}x{rgb.shape[0]}, its calibration of {size}")
    if len(calibration.intrinsic) != 4 + _COEFFICIENTS:
        raise ValueError(f"camera {camera} has {len(calibration.intrinsic)} intrinsics, not 9")
    fx, fy, cx, cy, *distortion = calibration.intrinsic
    # Waymo counts pixels from the left edge of the first one.
    recorded = np.array([[fx, 0, cx - _HALF_PIXEL], [0, fy, cy - _HALF_PIXEL], [0, 0, 1]])
    distortion = np.array(distortion)
    straight, _ = cv2.getOptimalNewCameraMatrix(recorded, distortion, size, 0)
    maps = cv2.initUndistortRectifyMap(
        recorded, distortion, np.eye(3), straight, size, cv2.CV_32FC1
    )
    rgb = cv2.remap(rgb, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    factor = min(1, max_side / max(size))
    small = (round(size[0] * factor), round(size[1] * factor))
    scale = np.array(small) / size
    intrinsics = straight.copy()
    intrinsics[:2, :2] *= scale[:, None]
    intrinsics[:2, 2] = (straight[:2, 2] + _HALF_PIXEL) * scale - _HALF_PIXEL

    pose = transform(image.pose) @ transform(calibration.extrinsic) @ _OPENCV_TO_WAYMO
    pixels, points = _seen_by(camera, lidar)
    depth = np.zeros(small[::-1], np.float32)
    if len(points):
        pixels = cv2.undistortPoints(pixels[:, None], recorded, distortion, P=intrinsics)[:, 0]
        _put_nearest(depth, pixels, geotrf(np.linalg.inv(pose), points)[:, 2])
    return CameraView(cv2.resize(rgb, small, interpolation=cv2.INTER_AREA), depth, intrinsics, pose)


def _seen_by(camera: int, lidar: LidarPoints) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (M, 2) float64 as recorded and points (M, 3) of the lidar points a camera saw."""
    pixels, points = [], []
    for first in (0, 3):
        seen = lidar.projections[:, first] == camera
        pixels.append(lidar.projections[seen, first + 1 : first + 3])
        points.append(lidar.points[seen])
    return np.concatenate(pixels).astype(np.float64), np.concatenate(points)


def _put_nearest(depth: np.ndarray, pixels: np.ndarray, z: np.ndarray) -> None:
    """Write depths ``z`` (M,) of points at ``pixels`` (M, 2) into ``depth`` (H, W).

    Of the points of a pixel's nearest surface, that closest to the pixel's centre counts.
    """
    height, width = depth.shape
    whole = np.round(pixels).astype(int)
    inside = ((whole >= 0) & (whole < (width, height))).all(-1) & (z > 0)
    (x, y), z, off = whole[inside].T, z[inside], (pixels - whole)[inside]
    nearest = np.full(depth.shape, np.inf)
    np.minimum.at(nearest, (y, x), z)
    front = np.flatnonzero(z <= _ONE_SURFACE * nearest[y, x])
    order = front[np.argsort(-(off[front] ** 2).sum(-1), kind="stable")]
    depth[y[order], x[order]] = z[order]


def _rays(calibration: Message, shape: tuple[int, int]) -> np.ndarray:
    """Unit rays (H, W, 3) of a range image's cells, in the vehicle's axes.

    Rows go from the highest beam to the lowest, columns from the back over the left to the back,
    in the vehicle's azimuth.
    """
    rows, columns = shape
    inclination = np.array(calibration.beam_inclinations)
    if not len(inclination):
        low, high = calibration.beam_inclination_min, calibration.beam_inclination_max
        inclination = low + (np.arange(rows) + 0.5) / rows * (high - low)
    if len(inclination) != rows:
        raise ValueError(f"a lidar has {len(inclination)} beams and {rows} rows of ranges")
    turn = transform(calibration.extrinsic)[:3, :3]
    azimuth = np.pi - 2 * np.pi * (np.arange(columns) + 0.5) / columns
    azimuth = azimuth - np.arctan2(turn[1, 0], turn[0, 0])
    inclination = inclination[::-1, None]
    rays = np.stack(
        [
            np.cos(inclination) * np.cos(azimuth),
            np.cos(inclination) * np.sin(azimuth),
            np.broadcast_to(np.sin(inclination), shape),
        ],
        -1,
    )
    return rays @ turn.T


def _cell_poses(compressed: bytes) -> np.ndarray:
    """Vehicle-to-global (H, W, 4, 4) of each cell of a range image, taken one after the other."""
    values = matrix(compressed, "MatrixFloat").astype(np.float64)
    angles = values[..., :3].reshape(-1, 3)
    # Roll, pitch and yaw about x, y and z: a turn by yaw after pitch after roll.
    turns = Rotation.from_euler("xyz", angles).as_matrix()
    poses = np.zeros((*values.shape[:2], 4, 4))
    poses[..., :3, :3] = turns.reshape(*values.shape[:2], 3, 3)
    poses[..., :3, 3] = values[..., 3:]
    poses[..., 3, 3] = 1
    return poses


def _decoded(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"not a readable JPEG ({error})") from error
