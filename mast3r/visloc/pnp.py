"""A camera's pose from pixels and the world points they show, with its covariance.

RANSAC over minimal solutions and a robust refinement, by COLMAP (Schoenberger and Frahm, 2016).
"""

from dataclasses import dataclass

import numpy as np
import pycolmap

from dust3r.utils.geometry import geotrf, inv
from mast3r.visloc.scene import HALF_PIXEL, Camera

LEAST_POINTS = 4
# Of the longer side of the image: 5 pixels of 640, 8 of 1024.
RELATIVE_THRESHOLD = 0.008

# Cauchy's loss is 95% as efficient as least squares on Gaussian noise at this many deviations.
_CAUCHY, _EFFICIENCY = 2.385, 0.95
_MEDIAN_OF_SQUARES = 1.386  # of two Gaussian coordinates, in variances
_LEAST_DEVIATION = 0.05  # pixels; exact matches would turn the loss into a needle
_ROUNDS = 2
# Ratio of the pose's best to its worst known direction; beyond, some direction is not known.
_CONDITION = 1e10


@dataclass(frozen=True)
class AbsolutePose:
    """What PnP found.

    Attributes:
        pose: (4, 4) camera-to-world; None where it failed.
        inliers: (K,) bool, points that project within the threshold.
        covariance: (6, 6) of the error (w, v) of ``pose``: rotation vector w in radians, then
            position v in the unit of the points, both in the world's axes. The true rotation is
            exp([w]x) R, a perturbation from the left, and the true camera centre is c + v. None
            where the pose is.
        reason: why it failed, else "".
    """

    pose: np.ndarray | None
    inliers: np.ndarray
    covariance: np.ndarray | None = None
    reason: str = ""


def absolute_pose(
    pixels: np.ndarray,
    points: np.ndarray,
    camera: Camera,
    *,
    threshold: float | None = None,
    min_inliers: int = LEAST_POINTS,
    max_trials: int = 10_000,
    seed: int = 0,
) -> AbsolutePose:
    """Pose of a camera that sees world points at pixels; the same for the same input.

    The covariance is that of Gaussian noise whose variance the residuals tell. Rows with the same
    pixel are taken for one observation, as one place matched in several map images is.

    Args:
        pixels: (K, 2) of the upright original, the first centre at (0, 0).
        points: (K, 3); rows that are not finite are ignored.
        camera: of the image, with its distortion.
        threshold: pixels within which a projection is right; ``RELATIVE_THRESHOLD`` of the longer
            side where None.
        min_inliers: with fewer it failed, 4 at the least.
        max_trials: most minimal samples.
        seed: of the samples.

    Raises:
        ValueError: shapes that do not belong together, or a threshold that is not positive.
    """
    pixels, points = np.asarray(pixels, float), np.asarray(points, float)
    if pixels.shape != (len(pixels), 2) or points.shape != (len(pixels), 3):
        raise ValueError(
            f"pixels have the shape {pixels.shape} and points {points.shape}: expected (K, 2) and "
            "(K, 3)"
        )
    threshold = RELATIVE_THRESHOLD * max(camera.size) if threshold is None else threshold
    if not threshold > 0:
        raise ValueError(f"threshold={threshold} must be above 0 pixels")
    min_inliers = max(min_inliers, LEAST_POINTS)

    def failed(reason: str) -> AbsolutePose:
        return AbsolutePose(None, np.zeros(len(pixels), bool), reason=reason)

    usable = np.isfinite(pixels).all(1) & np.isfinite(points).all(1)
    usable[usable] = np.isfinite(camera.rays(pixels[usable])).all(1)
    if usable.sum() < LEAST_POINTS:
        return failed(f"{usable.sum()} matches with a 3-D point, and a pose needs {LEAST_POINTS}")
    seen, known = pixels[usable], points[usable]
    world_to_camera = _sampled(seen, known, camera, threshold, max_trials, seed)
    if world_to_camera is None:
        return failed("no pose explains the matches")
    inside = _residuals(world_to_camera, seen, known, camera) < threshold
    deviation = threshold / _CAUCHY
    for _ in range(_ROUNDS):
        refined = _refined(world_to_camera, seen, known, inside, camera, _CAUCHY * deviation)
        if refined is None:
            return failed("the pose cannot be refined: its points are degenerate")
        world_to_camera = refined
        residuals = _residuals(world_to_camera, seen, known, camera)
        inside = residuals < threshold
        if inside.sum() < min_inliers:
            return failed(
                f"{inside.sum()} of {len(seen)} matches agree on a pose, fewer than {min_inliers}"
            )
        squares = np.median(residuals[inside] ** 2) / _MEDIAN_OF_SQUARES
        deviation = max(float(np.sqrt(squares)), _LEAST_DEVIATION)
    pose = inv(np.vstack([world_to_camera.matrix(), [0, 0, 0, 1]]))
    covariance = _covariance(pose, seen[inside], known[inside], residuals[inside], camera)
    if covariance is None:
        return failed("the points do not determine a pose: they are few, coincide or lie on a line")
    inliers = np.zeros(len(pixels), bool)
    inliers[usable] = inside
    return AbsolutePose(pose, inliers, covariance)


def _sampled(
    pixels: np.ndarray,
    points: np.ndarray,
    camera: Camera,
    threshold: float,
    max_trials: int,
    seed: int,
) -> pycolmap.Rigid3d | None:
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error = threshold
    options.ransac.random_seed = seed
    options.ransac.max_num_trials = max_trials
    options.ransac.min_num_trials = min(100, max_trials)
    options.ransac.min_inlier_ratio = 0.01
    found = pycolmap.estimate_absolute_pose(pixels + HALF_PIXEL, points, camera.model, options)
    if found is None or not np.isfinite(found["cam_from_world"].matrix()).all():
        return None
    return found["cam_from_world"]


def _refined(
    world_to_camera: pycolmap.Rigid3d,
    pixels: np.ndarray,
    points: np.ndarray,
    inside: np.ndarray,
    camera: Camera,
    scale: float,
) -> pycolmap.Rigid3d | None:
    if inside.sum() < LEAST_POINTS:
        return None
    options = pycolmap.AbsolutePoseRefinementOptions()
    options.loss_function_scale = scale
    options.gradient_tolerance = 1e-6
    # Refinement writes into the camera it is given.
    model = pycolmap.Camera(camera.model.todict())
    found = pycolmap.refine_absolute_pose(
        world_to_camera, pixels + HALF_PIXEL, points, inside, model, options
    )
    if found is None or not np.isfinite(found["cam_from_world"].matrix()).all():
        return None
    return found["cam_from_world"]


def _residuals(
    world_to_camera: pycolmap.Rigid3d, pixels: np.ndarray, points: np.ndarray, camera: Camera
) -> np.ndarray:
    """Distances (K,) in pixels; infinite behind the camera."""
    projected = camera.project(geotrf(world_to_camera.matrix(), points))
    return np.nan_to_num(np.linalg.norm(projected - pixels, axis=1), nan=np.inf)


def _covariance(
    pose: np.ndarray,
    pixels: np.ndarray,
    points: np.ndarray,
    residuals: np.ndarray,
    camera: Camera,
) -> np.ndarray | None:
    """Covariance (6, 6) as in ``AbsolutePose``; None where some direction is not determined."""
    # One observation of a pixel that several map images matched, with several guesses of its point.
    places, counts = np.unique(pixels.round(2), axis=0, return_inverse=True, return_counts=True)[1:]
    weights = 1 / counts[places.reshape(-1)]
    freedom = 2 * weights.sum() - 6
    if freedom <= 0:
        return None
    arms = points - pose[:3, 3]
    in_camera = arms @ pose[:3, :3]
    # Of points in the camera by (w, v): R^T [arm]x w - R^T v.
    by_rotation = np.cross(pose[:3, :3].T, arms[:, None])
    by_pose = np.concatenate([by_rotation, np.tile(-pose[:3, :3].T, (len(arms), 1, 1))], 2)
    jacobian = np.einsum("kij,kjn->kin", _projection_slopes(in_camera, camera), by_pose)
    if not np.isfinite(jacobian).all():
        return None
    information = np.einsum("k,kim,kin->mn", weights, jacobian, jacobian)
    # Radians and metres have no common unit: compare what is known in units of the diagonal.
    units = np.sqrt(np.diag(information))
    if not (units > 0).all():
        return None
    scaled = information / np.outer(units, units)
    if np.linalg.cond(scaled) > _CONDITION:
        return None
    variance = max((weights * residuals**2).sum() / freedom, _LEAST_DEVIATION**2)
    return variance / _EFFICIENCY * np.linalg.inv(scaled) / np.outer(units, units)


def _projection_slopes(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Derivatives (K, 2, 3) of the pixels by points (K, 3) in the camera's frame."""
    step = 1e-5 * np.abs(points[:, 2:])
    columns = [
        (camera.project(points + step * axis) - camera.project(points - step * axis)) / (2 * step)
        for axis in np.eye(3)
    ]
    return np.stack(columns, -1)
