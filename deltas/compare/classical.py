"""Depth as before networks: SIFT matches, linear triangulation with known poses, interpolation.

Lowe, Distinctive Image Features from Scale-Invariant Keypoints, IJCV 2004; Hartley and Zisserman,
Multiple View Geometry, 2004, section 12.2 (linear triangulation). Pixels are (x, y), the first
one's centre at (0, 0).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError, cKDTree
from torch import Tensor

from deltas.compare.methods import Depth, DepthMethod, Frames
from dust3r.utils.geometry import geotrf, project
from dust3r.utils.image import rgb

# Of the nearest descriptor's distance to the second nearest's; Lowe's own choice.
_RATIO = 0.8
_FEWEST_FOR_HULL = 3


@dataclass(frozen=True)
class SparsePoints:
    """N triangulated points of the anchor: ``pixels`` (N, 2) and ``depth`` (N,) metres along z."""

    pixels: np.ndarray
    depth: np.ndarray

    def __len__(self) -> int:
        return len(self.depth)


class SiftTriangulation(DepthMethod):
    """SIFT matches of the anchor with each neighbour, triangulated, then interpolated.

    The uncertainty is the distance in pixels to the nearest point. Without any point there is no
    depth at all (NaN).

    Args:
        mindepth, maxdepth: points nearer or farther are left out, metres.
        max_error: pixels that a match may be off its epipolar line, and a point off its match.
    """

    name = "sift"

    def __init__(
        self, mindepth: float = 0.5, maxdepth: float = 10.0, max_error: float = 2.0
    ) -> None:
        self.depth_range = mindepth, maxdepth
        self.max_error = max_error
        # Without it the first pixel's centre moves by a quarter of a pixel.
        self._sift = cv2.SIFT_create(enable_precise_upscale=True)

    def predict(self, frames: Frames) -> Depth:
        return complete(self.triangulate(frames), frames.size)

    def triangulate(self, frames: Frames) -> SparsePoints:
        """The points of the anchor that at least one neighbour confirms.

        Of a keypoint that several of them do, the inverse depth is averaged with the squared angle
        between the rays as weight, whose inverse its variance grows with.
        """
        found = [self._sift.detectAndCompute(_grey(image), None) for image in frames.images]
        keypoints, descriptors = found[0]
        pixels = np.array([point.pt for point in keypoints]).reshape(-1, 2)
        inverse, weight = np.zeros((2, len(pixels)))
        for view, to_view in enumerate(frames.from_anchor(), start=1):
            others, described = found[view]
            first, second = _matches(descriptors, described)
            matched = np.array([point.pt for point in others]).reshape(-1, 2)[second]
            points = _triangulated(
                pixels[first],
                matched,
                to_view,
                *frames.intrinsics[[0, view]],
                max_error=self.max_error,
            )
            z = points[:, 2]
            # A comparison with NaN is false.
            good = (z >= self.depth_range[0]) & (z <= self.depth_range[1])
            squared = _angles(points[good], to_view) ** 2
            inverse[first[good]] += squared / z[good]
            weight[first[good]] += squared
        kept = weight > 0
        return SparsePoints(pixels[kept], weight[kept] / inverse[kept])


def complete(points: SparsePoints, size: tuple[int, int]) -> Depth:
    """Depth of all pixels of ``size`` (height, width): linear between points, nearest outside.

    Inverse depths are interpolated, which on a plane are linear in the pixel. NaN everywhere
    without a point.
    """
    height, width = size
    if not len(points):
        nothing = np.full(size, np.nan, np.float32)
        return Depth(nothing, nothing)
    y, x = np.mgrid[:height, :width]
    grid = np.stack([x, y], -1).astype(np.float64)
    distance, nearest = cKDTree(points.pixels).query(grid)
    inverse = 1 / points.depth
    filled = inverse[nearest]
    if len(points) >= _FEWEST_FOR_HULL:
        try:
            inside = LinearNDInterpolator(points.pixels, inverse)(grid)
        except QhullError:
            # All on one line.
            inside = np.full(size, np.nan)
        filled = np.where(np.isfinite(inside), inside, filled)
    return Depth((1 / filled).astype(np.float32), distance.astype(np.float32))


def _matches(descriptors: np.ndarray | None, others: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Places (K,) in both of mutual nearest neighbours that pass the ratio test."""
    if descriptors is None or others is None or min(len(descriptors), len(others)) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    back = {match.queryIdx: match.trainIdx for match in matcher.match(others, descriptors)}
    kept = [
        (best.queryIdx, best.trainIdx)
        for best, second in matcher.knnMatch(descriptors, others, k=2)
        if best.distance < _RATIO * second.distance and back[best.trainIdx] == best.queryIdx
    ]
    return tuple(np.array(kept, int).reshape(-1, 2).T)


def _triangulated(
    pixels: np.ndarray,
    matched: np.ndarray,
    to_view: np.ndarray,
    intrinsics: np.ndarray,
    other: np.ndarray,
    max_error: float,
) -> np.ndarray:
    """Points (K, 3) in the anchor; NaN where a match fits no point before both cameras."""
    nowhere = np.full((len(pixels), 3), np.nan)
    near = _epipolar_distance(pixels, matched, to_view, intrinsics, other) < max_error
    if not near.any():
        return nowhere
    projections = intrinsics @ np.eye(3, 4), other @ to_view[:3]
    homogeneous = cv2.triangulatePoints(*projections, pixels[near].T, matched[near].T).T
    with np.errstate(divide="ignore", invalid="ignore"):
        points = homogeneous[:, :3] / homogeneous[:, 3:]
    good = np.ones(len(points), bool)
    for there, camera, seen in (
        (points, intrinsics, pixels),
        (geotrf(to_view, points), other, matched),
    ):
        reprojected, z = project(there, camera)
        good &= (z > 0) & (np.linalg.norm(reprojected - seen[near], axis=1) < max_error)
    nowhere[near] = np.where(good[:, None], points, np.nan)
    return nowhere


def _epipolar_distance(
    pixels: np.ndarray,
    matched: np.ndarray,
    to_view: np.ndarray,
    intrinsics: np.ndarray,
    other: np.ndarray,
) -> np.ndarray:
    """Pixels (K,) from ``matched`` (K, 2) to the epipolar line of ``pixels`` (K, 2).

    Where the cameras stand in one place there is no line, and nothing to triangulate: infinite.
    """
    rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(intrinsics).T
    infinity = rays @ (other @ to_view[:3, :3]).T
    lines = np.cross(other @ to_view[:3, 3], infinity)
    across = np.linalg.norm(lines[:, :2], axis=1)
    off = np.abs((lines[:, :2] * matched).sum(1) + lines[:, 2])
    return np.divide(off, across, out=np.full(len(off), np.inf), where=across > 0)


def _angles(points: np.ndarray, to_view: np.ndarray) -> np.ndarray:
    """Between the rays to points (K, 3) from both cameras, radians (K,)."""
    centre = np.linalg.inv(to_view)[:3, 3]
    across = np.linalg.norm(np.cross(points, points - centre), axis=1)
    return np.arctan2(across, (points * (points - centre)).sum(1))


def _grey(image: Tensor) -> np.ndarray:
    """(H, W) uint8 of an image (3, H, W) in [-1, 1]."""
    return cv2.cvtColor((255 * rgb(image)).round().astype(np.uint8), cv2.COLOR_RGB2GRAY)
