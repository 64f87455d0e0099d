"""Exact ray casting of a grid of pinhole rays against convex primitives.

A ray's direction is affine in its pixel, d(u, v) = c + u a + v b with the camera's z component
equal to 1, so that the ray parameter of a hit is its depth z. In a primitive's own frame the
directions stay affine, hence no per-ray transforms: a primitive costs a few array operations over
the screen rectangle that its bounding box covers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets_preprocess.rooms.shapes import Kind, Primitive

NEAR = 1e-3

Window = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class RayGrid:
    """Pinhole rays of a (rows x cols) grid of pixel coordinates.

    ``origin`` (3,) and ``along_u``, ``along_v``, ``forward`` (3,) in the world: the ray of pixel
    (u, v) is origin + z (forward + u along_u + v along_v), z being camera depth in metres.
    ``cols`` (w,) and ``rows`` (h,) are evenly spaced pixel coordinates, the centre of the first
    pixel of the image being (0, 0).
    """

    origin: np.ndarray
    along_u: np.ndarray
    along_v: np.ndarray
    forward: np.ndarray
    cols: np.ndarray
    rows: np.ndarray

    @classmethod
    def of_camera(
        cls, intrinsics: np.ndarray, pose: np.ndarray, cols: np.ndarray, rows: np.ndarray
    ) -> "RayGrid":
        """Rays of a camera: ``intrinsics`` (3, 3) pixels, ``pose`` (4, 4) camera-to-world."""
        directions = pose[:3, :3] @ np.linalg.inv(intrinsics)
        return cls(
            pose[:3, 3],
            directions[:, 0],
            directions[:, 1],
            directions[:, 2],
            np.asarray(cols, np.float32),
            np.asarray(rows, np.float32),
        )

    @classmethod
    def of_pixels(
        cls, intrinsics: np.ndarray, pose: np.ndarray, width: int, height: int
    ) -> "RayGrid":
        """One ray through each pixel centre."""
        return cls.of_camera(intrinsics, pose, np.arange(width), np.arange(height))

    def in_frame(self, primitive: Primitive) -> tuple[np.ndarray, np.ndarray]:
        """Rays in the primitive's unit frame: origin (3,), and along_u, along_v, forward (3, 3)."""
        to_unit = primitive.rotation.T / primitive.half[:, None]
        vectors = np.stack([self.along_u, self.along_v, self.forward], axis=1)
        origin = to_unit @ (self.origin - primitive.centre)
        return origin.astype(np.float32), (to_unit @ vectors).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Hits:
    """Nearest hits of a grid: ``depth`` (h, w) float32 metres, inf where nothing is hit, and the
    ``index`` (h, w) int16 of the primitive, -1 where none."""

    depth: np.ndarray
    index: np.ndarray


class Solids:
    """Primitives with their corners stacked, ready to be found on any screen."""

    def __init__(self, primitives: Sequence[Primitive]):
        self.primitives = tuple(primitives)
        corners = [primitive.corners() for primitive in self.primitives]
        self._corners = np.reshape(corners, (len(corners), 8, 3))

    def windows(self, grid: RayGrid) -> list[Window | None]:
        """Rows and columns of the grid that can see each primitive; None where no ray can."""
        vectors = np.stack([grid.along_u, grid.along_v, grid.forward], axis=1)
        # Homogeneous pixels (u z, v z, z), the corners behind the camera cut off edge by edge.
        points = (self._corners - grid.origin) @ np.linalg.inv(vectors).T
        tails, heads = points[:, _EDGES[:, 0]], points[:, _EDGES[:, 1]]
        crossing = (tails[..., 2] > NEAR) != (heads[..., 2] > NEAR)
        rise = np.where(crossing, heads[..., 2] - tails[..., 2], 1)
        cut = tails + ((NEAR - tails[..., 2]) / rise)[..., None] * (heads - tails)
        points = np.concatenate([points, cut], axis=1)
        seen = np.concatenate([points[:, :8, 2] > NEAR, crossing], axis=1)
        pixels = points[..., :2] / np.where(seen, points[..., 2], 1)[..., None]
        lowest = np.where(seen[..., None], pixels, np.inf).min(axis=1)
        highest = np.where(seen[..., None], pixels, -np.inf).max(axis=1)
        first_col, last_col = _covered(grid.cols, lowest[:, 0], highest[:, 0])
        first_row, last_row = _covered(grid.rows, lowest[:, 1], highest[:, 1])
        return [
            (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None
            for left, right, top, bottom in zip(
                first_col, last_col, first_row, last_row, strict=True
            )
        ]


def cast(solids: Solids, grid: RayGrid) -> Hits:
    """Nearest hit of every ray. A ray that starts inside a solid does not hit that solid."""
    shape = (len(grid.rows), len(grid.cols))
    hits = Hits(np.full(shape, np.inf, np.float32), np.full(shape, -1, np.int16))
    windows = solids.windows(grid)
    for number, (primitive, window) in enumerate(zip(solids.primitives, windows, strict=True)):
        if window is None:
            continue
        depth, index = hits.depth[window], hits.index[window]
        candidate = _depths(primitive, grid, window)
        nearer = candidate < depth
        np.copyto(depth, candidate, where=nearer)
        index[nearer] = number
    return hits


_SIGNS = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
_EDGES = np.array(
    [(a, b) for a in range(8) for b in range(a) if np.abs(_SIGNS[a] - _SIGNS[b]).sum() == 2]
)


def _covered(
    coordinates: np.ndarray, lowest: np.ndarray, highest: np.ndarray
) -> tuple[list[int], list[int]]:
    """First and one past the last index of the evenly spaced coordinates in [lowest, highest]."""
    spacing = coordinates[1] - coordinates[0] if len(coordinates) > 1 else 1.0
    count = len(coordinates)
    # One more on either side: the corners are rounded, and a ray too many costs nothing.
    first = np.clip(np.floor((lowest - coordinates[0]) / spacing) - 1, 0, count)
    stop = np.clip(np.ceil((highest - coordinates[0]) / spacing) + 2, 0, count)
    return first.astype(int).tolist(), stop.astype(int).tolist()


def _depths(primitive: Primitive, grid: RayGrid, window: Window) -> np.ndarray:
    """Depth (rows, cols) float32 of each ray's hit of one primitive, inf where it misses."""
    origin, vectors = grid.in_frame(primitive)
    rows, cols = grid.rows[window[0], None], grid.cols[window[1]]
    direction = [rows * vectors[k, 1] + (cols * vectors[k, 0] + vectors[k, 2]) for k in range(3)]
    if primitive.kind is Kind.SPHERE:
        enter, leave = _round_interval(origin, direction)
    elif primitive.kind is Kind.CYLINDER:
        enter, leave = _round_interval(origin[:2], direction[:2])
        enter_slab, leave_slab = _slab_interval(origin[2], direction[2])
        enter, leave = np.maximum(enter, enter_slab), np.minimum(leave, leave_slab)
    else:
        enter, leave = _slab_interval(origin[0], direction[0])
        for axis in (1, 2):
            enter_slab, leave_slab = _slab_interval(origin[axis], direction[axis])
            np.maximum(enter, enter_slab, out=enter)
            np.minimum(leave, leave_slab, out=leave)
        if primitive.kind is Kind.SHELL:
            return leave
    return np.where((enter <= leave) & (enter > NEAR), enter, np.float32(np.inf))


def _slab_interval(origin: np.float32, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays enter and leave the slab |x| <= 1."""
    # A ray exactly inside the slab's plane would divide by zero; nudged, it is merely far away.
    inverse = 1 / np.where(direction == 0, np.float32(1e-12), direction)
    middle = inverse * -origin
    reach = np.abs(inverse)
    return middle - reach, middle + reach


def _round_interval(
    origin: np.ndarray, direction: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays enter and leave the unit disc (2 axes) or ball (3 axes).

    The discriminant |d|^2 - |o x d|^2 avoids the cancellation of b^2 - ac, which in single
    precision loses thin poles at a few metres.
    """
    squared = sum(d * d for d in direction)
    along = sum(float(o) * d for o, d in zip(origin, direction, strict=True))
    axes = [(0, 1)] if len(direction) == 2 else [(0, 1), (1, 2), (2, 0)]
    crossed = sum((origin[i] * direction[j] - origin[j] * direction[i]) ** 2 for i, j in axes)
    discriminant = squared - crossed
    root = np.sqrt(np.maximum(discriminant, 0))
    hit, parallel = discriminant > 0, squared < 1e-14
    # A ray along a cylinder's axis is inside the disc from end to end or never.
    endless = np.float32(np.inf if (origin * origin).sum() < 1 else -np.inf)
    squared = np.where(parallel, np.float32(1), squared)
    enter = np.where(hit, (-along - root) / squared, np.float32(np.inf))
    leave = np.where(hit, (root - along) / squared, np.float32(-np.inf))
    return np.where(parallel, -endless, enter), np.where(parallel, endless, leave)
