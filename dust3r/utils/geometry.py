"""Poses, pinhole cameras and pointmaps, for numpy arrays and torch tensors alike.

Axes are OpenCV's (x right, y down, z forward), poses camera-to-world, intrinsics in pixels with the
centre of the first pixel at (0, 0).
"""

from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def inv(transform: Array) -> Array:
    """Inverse of (..., n, n) matrices."""
    if isinstance(transform, torch.Tensor):
        return torch.linalg.inv(transform)
    return np.linalg.inv(transform)


def geotrf(transform: Array, points: Array) -> Array:
    """Points (..., N, 3) or (..., H, W, 3) under transforms (..., 4, 4) or (..., 3, 4).

    Leading dimensions of ``transform`` are matched to those of ``points`` from the left, so that a
    batch of poses (B, 4, 4) moves a batch of pointmaps (B, H, W, 3).
    """
    spread = transform.reshape(
        *transform.shape[:-2],
        *(1,) * max(0, points.ndim - 1 - (transform.ndim - 2)),
        *transform.shape[-2:],
    )
    rotation, translation = spread[..., :3, :3], spread[..., :3, 3]
    if isinstance(points, torch.Tensor):
        moved = torch.einsum("...ij,...j->...i", rotation, points)
    else:
        moved = np.einsum("...ij,...j->...i", rotation, points)
    return moved + translation


def depthmap_to_pts3d(depth: Array, intrinsics: Array, pose: Array | None = None) -> Array:
    """Pointmap (..., H, W, 3) of depth maps (..., H, W), z in the unit of ``depth``.

    ``intrinsics`` is (..., 3, 3) with leading dimensions as ``depth``; skew is taken into account.
    With ``pose`` (..., 4, 4), camera-to-world, the points are in the world, else in the camera.
    """
    height, width = depth.shape[-2:]
    if isinstance(depth, torch.Tensor):
        u = torch.arange(width, dtype=depth.dtype, device=depth.device)
        v = torch.arange(height, dtype=depth.dtype, device=depth.device)[:, None]
        stack = torch.stack
    else:
        u = np.arange(width, dtype=depth.dtype)
        v = np.arange(height, dtype=depth.dtype)[:, None]
        stack = np.stack
    k = intrinsics[..., None, None, :, :]
    y = (v - k[..., 1, 2]) / k[..., 1, 1]
    x = (u - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
    points = stack([x * depth, y * depth, depth], -1)
    return points if pose is None else geotrf(pose, points)


def resized_intrinsics(intrinsics: np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """Intrinsics (..., 3, 3), float64, of images resized by ``scale``, one factor or those of x, y.

    Pixels are squares around their centres, of which the first is at (0, 0): half a pixel counts.
    """
    resized = np.asarray(intrinsics, np.float64).copy()
    factors = np.broadcast_to(scale, 2)
    resized[..., :2, 2] += 0.5
    resized[..., :2, :] *= factors[:, None]
    resized[..., :2, 2] -= 0.5
    return resized


def project(points: Array, intrinsics: Array) -> tuple[Array, Array]:
    """Pixels (..., 2) and depths (...) of camera-frame points (..., 3).

    Points on the camera plane give infinite or NaN pixels; mask by depth > 0.
    """
    spread = intrinsics.reshape(
        *intrinsics.shape[:-2],
        *(1,) * max(0, points.ndim - 1 - (intrinsics.ndim - 2)),
        *intrinsics.shape[-2:],
    )
    if isinstance(points, torch.Tensor):
        homogeneous = torch.einsum("...ij,...j->...i", spread, points)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            homogeneous = np.einsum("...ij,...j->...i", spread, points)
            return homogeneous[..., :2] / homogeneous[..., 2:], points[..., 2]
    return homogeneous[..., :2] / homogeneous[..., 2:], points[..., 2]
