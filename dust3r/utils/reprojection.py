"""What one posed RGB-D view says about another: carried depths, and how much both see.

The overlap of two views is measured by depth reprojection: the fraction of a view's valid pixels
whose 3-D point lands inside the other image at a depth that agrees with the one measured there, the
smaller of the two directions. The depth comparison is the occlusion check: a point in the frustum
but behind another surface is not seen in common. Axes, poses and pixels are as in
``dust3r.utils.geometry``.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from dust3r.utils.geometry import depthmap_to_pts3d, geotrf, inv, project

AGREE = 0.05

_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])

Camera = tuple[np.ndarray, np.ndarray, np.ndarray]

AS_GIVEN = "as given"
# What depth, intrinsics and pose are once each of the usual mistakes is taken back.
CONVENTIONS: Mapping[str, Callable[..., Camera]] = {
    AS_GIVEN: lambda depth, k, pose: (depth, k, pose),
    "inverting the poses (they look like world-to-camera)": lambda depth, k, pose: (
        depth,
        k,
        np.linalg.inv(pose),
    ),
    "axes of OpenGL (y up, z backward)": lambda depth, k, pose: (depth, k, pose @ _OPENGL),
    "depth 1000 times as large (metres taken for millimetres)": lambda depth, k, pose: (
        1000 * depth,
        k,
        pose,
    ),
    "depth 1000 times as small (millimetres taken for metres)": lambda depth, k, pose: (
        depth / 1000,
        k,
        pose,
    ),
    "depth along z made from distances along the ray": lambda depth, k, pose: (
        depth / _ray_lengths(depth.shape, k),
        k,
        pose,
    ),
}


def overlap(
    depth1: np.ndarray,
    intrinsics1: np.ndarray,
    pose1: np.ndarray,
    depth2: np.ndarray,
    intrinsics2: np.ndarray,
    pose2: np.ndarray,
    *,
    tolerance: float = AGREE,
    stride: int = 8,
) -> float:
    """Overlap of two views in [0, 1]; 0 if one of them has no valid depth.

    ``depth1`` (H1, W1) and ``depth2`` (H2, W2) are z in metres with 0 or not finite = none,
    intrinsics (3, 3), poses (4, 4) camera-to-world. Every ``stride``-th pixel in both axes is
    carried over; depths agree when they differ by at most ``tolerance`` times the carried depth. A
    point that lands where the other view has no depth counts as not seen.
    """
    first, second = (depth1, intrinsics1, pose1), (depth2, intrinsics2, pose2)
    errors = reprojection_errors(*first, *second, stride=stride)
    opposite = reprojection_errors(*second, *first, stride=stride)
    if not (len(errors) and len(opposite)):
        return 0.0
    return float(min((errors <= tolerance).mean(), (opposite <= tolerance).mean()))


def reprojection_errors(
    depth1: np.ndarray,
    intrinsics1: np.ndarray,
    pose1: np.ndarray,
    depth2: np.ndarray,
    intrinsics2: np.ndarray,
    pose2: np.ndarray,
    *,
    stride: int = 8,
) -> np.ndarray:
    """How far the depth of view 1, carried into view 2, is from the one measured there: (K,).

    Arguments as for ``overlap``; one value for each of the K valid pixels of view 1 on the grid, a
    fraction of the carried depth, infinite where the point leaves the image or meets no depth. With
    right poses, intrinsics and units the median of the finite values is about the sensor's noise,
    1% or less; occluded points are in it too.
    """
    depth, intrinsics = shrink(clean(depth1), intrinsics1, stride)
    rows, columns = np.nonzero(depth)
    rays = np.linalg.inv(intrinsics) @ np.stack([columns, rows, np.ones(len(rows))])
    relative = np.linalg.inv(np.asarray(pose2, np.float64)) @ pose1
    moved = relative[:3, :3] @ (rays * depth[rows, columns]) + relative[:3, 3:]
    inside, column, row = pixels((intrinsics2 @ moved)[None], *depth2.shape)
    measured = np.where(inside[0], clean(depth2)[row[0], column[0]], 0)
    return np.divide(
        np.abs(measured - moved[2]), moved[2], out=np.full(len(rows), np.inf), where=measured > 0
    )


def carried_colours(
    depth1: np.ndarray,
    intrinsics1: np.ndarray,
    pose1: np.ndarray,
    depth2: np.ndarray,
    intrinsics2: np.ndarray,
    pose2: np.ndarray,
    rgb2: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """View 2's colours as view 1 sees them, (H1, W1, 3) uint8, and where, (H1, W1) bool.

    Cameras and depths as for ``overlap``, ``rgb2`` (H2, W2, 3) uint8. Each pixel of view 1 with
    depth is projected into view 2; it is seen there if the depths agree within 5%.
    """
    pixels, z = carried_pixels(depth1, intrinsics1, pose1, intrinsics2, pose2)
    in_front = z > 0
    x, y = np.where(in_front, pixels.transpose(2, 0, 1), -10.0).astype(np.float32)
    measured = cv2.remap(clean(depth2).astype(np.float32), x, y, cv2.INTER_NEAREST)
    seen = in_front & (np.abs(measured - z) <= AGREE * z)
    return cv2.remap(rgb2, x, y, cv2.INTER_LINEAR), seen


def carried_pixels(
    depth1: np.ndarray,
    intrinsics1: np.ndarray,
    pose1: np.ndarray,
    intrinsics2: np.ndarray,
    pose2: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Where view 2 sees each pixel of view 1, (H1, W1, 2) as (x, y), and its depth there (H1, W1).

    Cameras and depths as for ``overlap``. The depth is not positive behind the camera, and 0 where
    view 1 has none; pixels mean nothing there.
    """
    depth = clean(depth1).astype(np.float64)
    points = depthmap_to_pts3d(depth, intrinsics1, pose1)
    pixels, z = project(geotrf(inv(np.asarray(pose2, np.float64)), points), intrinsics2)
    return pixels, np.where(depth > 0, z, 0)


def shrink(depth: np.ndarray, intrinsics: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Every ``stride``-th pixel of a depth map (H, W), and the intrinsics (3, 3) of the small map.

    Depths are picked, not averaged: a mean over an object's edge is a depth where nothing is.
    """
    offset = stride // 2
    small = intrinsics.astype(np.float64).copy()
    small[:2, 2] -= offset
    small[:2] /= stride
    return depth[offset::stride, offset::stride], small


def pixels(
    homogeneous: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of projected points (C, 3, M), homogeneous: inside the image or not, column and row.

    Columns and rows of points outside are 0.
    """
    z = homogeneous[:, 2]
    front = z > 0
    safe = np.where(front, z, 1)
    # Rounding to the pixel whose area, half a pixel to all sides of its centre, holds the point.
    column = np.floor(homogeneous[:, 0] / safe + np.float32(0.5))
    row = np.floor(homogeneous[:, 1] / safe + np.float32(0.5))
    inside = front & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return (
        inside,
        np.where(inside, column, 0).astype(np.int64),
        np.where(inside, row, 0).astype(np.int64),
    )


def clean(depth: np.ndarray) -> np.ndarray:
    """Depth with 0 where it is not finite or not positive."""
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0)


def _ray_lengths(shape: tuple[int, int], intrinsics: np.ndarray) -> np.ndarray:
    """Lengths (H, W) of rays whose z is 1."""
    height, width = shape
    x = (np.arange(width) - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height)[:, None] - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.sqrt(x**2 + y**2 + 1)
