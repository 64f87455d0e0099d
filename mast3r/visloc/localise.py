"""Queries localised in a map: images to compare with, matches, their world points, a pose each."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from tqdm import tqdm

from dust3r.utils.geometry import geotrf
from mast3r.visloc.matchers import Matcher, Ranking
from mast3r.visloc.pnp import absolute_pose
from mast3r.visloc.scene import LocalisationScene, MapImage, Query

log = logging.getLogger(__name__)

# Random matches agree by chance on a pose by up to about eight.
MIN_INLIERS = 12
MAX_MATCHES = 20_000

# Of the longer side of an image: 5 pixels of 1000.
_LANDMARK_RADIUS = 0.005
# Four neighbours farther apart than this part of their distance lie on two sides of an edge, unless
# the surface is seen as obliquely as this.
_LEAST_EDGE, _STEEPEST = 0.02, math.radians(75)


@dataclass(frozen=True)
class Localisation:
    """Where a query was taken.

    Attributes:
        name: of the query.
        pose: (4, 4) camera-to-world; None where it failed.
        inliers: matches that agree on the pose.
        matches: with a 3-D point.
        covariance: (6, 6) of rotation vector (radians) and position (scene units), a perturbation
            from the left in the world's axes, as ``mast3r.visloc.pnp.AbsolutePose`` defines it;
            None where the pose is.
        seconds: it took.
        images: names of the map's images that it was compared with, best first.
        reason: why it failed, else "".
    """

    name: str
    pose: np.ndarray | None
    inliers: int
    matches: int
    covariance: np.ndarray | None
    seconds: float
    images: tuple[str, ...] = ()
    reason: str = ""

    def standard_deviations(self) -> tuple[float, float] | None:
        """Of position (scene units) and rotation (degrees), each of the three axes together."""
        if self.covariance is None:
            return None
        turn, move = np.trace(self.covariance[:3, :3]), np.trace(self.covariance[3:, 3:])
        return float(np.sqrt(move)), float(np.degrees(np.sqrt(turn)))


def localise(
    scene: LocalisationScene,
    matcher: Matcher,
    retrieved: Mapping[str, Sequence[int]],
    *,
    verbose: bool = True,
    **settings: object,
) -> Iterator[Localisation]:
    """Each query of the scene in turn; a failed one does not end the run.

    Args:
        retrieved: of ``retrieve``.
        verbose: show a progress bar.
        settings: of ``localise_query``.
    """
    for query in tqdm(scene.queries, "queries", disable=not verbose):
        result = localise_query(query, scene, matcher, retrieved[query.name], **settings)
        if result.pose is None:
            log.warning("%s is not localised: %s", query.name, result.reason)
        yield result


def retrieve(
    scene: LocalisationScene, topk: int, ranking: Ranking | None = None
) -> dict[str, list[int]]:
    """Places of the map images to compare each query with, best first, by the query's name.

    Args:
        topk: most images of a query.
        ranking: of the map's images; None takes the pairs that the data set gives.

    Raises:
        ValueError: ``topk`` below 1, or pairs that are missing or name no map image.
    """
    if topk < 1:
        raise ValueError(f"topk={topk} must be 1 or more images")
    if ranking is not None:
        return _ranked(scene.queries, topk, ranking)
    if scene.pairs is None:
        raise ValueError(
            f"{scene.name} gives no pairs of queries and map images: rank them by a network or SIFT"
        )
    place = {image.name: number for number, image in enumerate(scene.images)}
    unknown = [name for names in scene.pairs.values() for name in names if name not in place]
    if unknown:
        raise ValueError(
            f"the pairs of {scene.name} name {unknown[0]!r}, which is no image of the map, and "
            f"{len(unknown) - 1} more: take the pairs that belong to this map"
        )
    return {
        query.name: [place[name] for name in scene.pairs.get(query.name, [])[:topk]]
        for query in scene.queries
    }


def localise_query(
    query: Query,
    scene: LocalisationScene,
    matcher: Matcher,
    retrieved: Sequence[int],
    *,
    threshold: float | None = None,
    min_inliers: int = MIN_INLIERS,
    max_matches: int = MAX_MATCHES,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Localisation:
    """Pose of one query; what goes wrong with it or the images it needs is the result's reason.

    Args:
        retrieved: places in ``scene.images`` to compare it with, best first.
        threshold: pixels of the query within which a projection is right; see
            ``mast3r.visloc.pnp.absolute_pose``.
        min_inliers: with fewer it failed.
        max_matches: of all map images together, the most confident.
        seed: of RANSAC.
        clock: tells the seconds.
    """
    start = clock()
    images = [scene.images[number] for number in retrieved]
    try:
        pixels, points = _correspondences(query, images, matcher, max_matches)
        found = absolute_pose(
            pixels, points, query.camera, threshold=threshold, min_inliers=min_inliers, seed=seed
        )
        pose, covariance, reason = found.pose, found.covariance, found.reason
        inliers, matches = int(found.inliers.sum()), len(pixels)
    except (ValueError, FileNotFoundError) as error:
        pose, covariance, reason = None, None, str(error)
        inliers = matches = 0
    return Localisation(
        name=query.name,
        pose=pose,
        inliers=inliers,
        matches=matches,
        covariance=covariance,
        seconds=clock() - start,
        images=tuple(image.name for image in images),
        reason=reason,
    )


def lift(image: MapImage, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World points that pixels of a map image show.

    From a depth map or scan by interpolation between four neighbours that lie on one surface; from
    landmarks on the pixel's ray, at the depth of the nearest one within a few pixels.

    Args:
        pixels: (K, 2) of the upright original, the first centre at (0, 0).

    Returns:
        points (K, 3) float64, NaN where unknown, and which are known (K,) bool.

    Raises:
        ValueError: the map image has no points of any kind, or depth and no camera.
    """
    pixels = np.asarray(pixels, float)
    if image.points is not None:
        points = _from_scan(image, pixels)
    elif image.camera is None:
        raise ValueError(
            f"the map image {image.name} has no intrinsics: give them with its depth or landmarks"
        )
    elif image.depth is not None:
        points = _unprojected(image, pixels, _depth_at(image, pixels))
    elif image.landmarks is not None:
        points = _unprojected(image, pixels, _landmark_depth_at(image, pixels))
    else:
        raise ValueError(f"the map image {image.name} has neither depth, landmarks nor a scan")
    return points, np.isfinite(points).all(1)


def _ranked(queries: Sequence[Query], topk: int, ranking: Ranking) -> dict[str, list[int]]:
    ranked: dict[str, list[int]] = {}
    for query in queries:
        try:
            alike = ranking.similarity([query.path])[0]
            ranked[query.name] = np.argsort(-alike, kind="stable")[:topk].tolist()
        except (ValueError, FileNotFoundError) as error:
            # Told when it is localised, as all that fails for one query alone.
            log.debug("%s cannot be ranked: %s", query.name, error)
            ranked[query.name] = []
    return ranked


def _correspondences(
    query: Query, images: Sequence[MapImage], matcher: Matcher, max_matches: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (K, 2) of the query and their world points (K, 3)."""
    if query.camera is None:
        raise ValueError(f"the intrinsics of {query.name} are not known; --focal gives them")
    _check_size(f"the query {query.name}", query.camera.size, matcher.size(query.path))
    if not images:
        raise ValueError("there is no image of the map to compare it with")
    found = matcher.match(query.path, [image.path for image in images])
    pixels, points, confidences = [np.zeros((0, 2))], [np.zeros((0, 3))], [np.zeros(0)]
    for image, matches in zip(images, found, strict=True):
        if not len(matches):
            continue
        if image.camera is not None:
            size = matcher.size(image.path)
            _check_size(f"the map image {image.name}", image.camera.size, size)
        lifted, known = lift(image, matches.xy2)
        pixels.append(matches.xy1[known])
        points.append(lifted[known])
        confidences.append(matches.confidence[known])
    kept = np.argsort(-np.concatenate(confidences), kind="stable")[:max_matches]
    return np.concatenate(pixels)[kept], np.concatenate(points)[kept]


def _check_size(what: str, stated: tuple[int, int], real: tuple[int, int]) -> None:
    if stated != real:
        raise ValueError(
            f"{what} has {real[0]}x{real[1]} pixels (width x height, upright), and its intrinsics "
            f"are of {stated[0]}x{stated[1]}: give those of this very file"
        )


def _depth_at(image: MapImage, pixels: np.ndarray) -> np.ndarray:
    """z (K,), NaN where unknown."""
    depth = np.asarray(image.depth(), float)
    width, height = image.camera.size
    if depth.ndim != 2:
        raise ValueError(f"the depth of {image.name} has the shape {depth.shape}, not (H, W)")
    with np.errstate(divide="ignore"):
        # A plane's inverse depth is linear in the image.
        inverse = np.where(depth > 0, 1 / depth, np.nan)
    ratio = np.array(depth.shape[::-1]) / (width, height)
    focal = image.camera.model.mean_focal_length() * ratio.mean()
    found = _between(inverse[..., None], depth, (pixels + 0.5) * ratio - 0.5, focal)
    return 1 / found[:, 0]


def _from_scan(image: MapImage, pixels: np.ndarray) -> np.ndarray:
    scan = np.asarray(image.points(), float)
    if scan.ndim != 3 or scan.shape[2] != 3:
        raise ValueError(f"the scan of {image.name} has the shape {scan.shape}, not (H, W, 3)")
    distance = np.linalg.norm(scan - image.pose[:3, 3], axis=-1)
    size = scan.shape[1::-1] if image.camera is None else image.camera.size
    ratio = np.array(scan.shape[1::-1]) / size
    # Where nothing says otherwise, of a usual camera.
    focal = scan.shape[1] if image.camera is None else image.camera.model.mean_focal_length()
    return _between(scan, distance, (pixels + 0.5) * ratio - 0.5, focal * ratio.mean())


def _between(
    values: np.ndarray, distance: np.ndarray, places: np.ndarray, focal: float
) -> np.ndarray:
    """Values (K, C) at places (K, 2) between the pixels of (H, W, C), NaN at edges of surfaces.

    Args:
        distance: (H, W) from the camera, 0 or not finite where there is nothing.
        focal: in pixels of ``values``.
    """
    height, width = distance.shape
    inside = ((places > -0.5) & (places < np.array([width, height]) - 0.5)).all(1)
    clipped = np.where(inside[:, None], places, 0).clip(0, [width - 1, height - 1])
    first = np.minimum(np.floor(clipped), np.maximum([width - 2, height - 2], 0)).astype(int)
    part = clipped - first
    second = np.minimum(first + 1, [width - 1, height - 1])
    x, y = (np.stack([first[:, axis], second[:, axis]], 1) for axis in (0, 1))
    rows, columns = y[:, [0, 0, 1, 1]], x[:, [0, 1, 0, 1]]
    across, down = (np.stack([1 - part[:, axis], part[:, axis]], 1) for axis in (0, 1))
    weights = down[:, [0, 0, 1, 1]] * across[:, [0, 1, 0, 1]]
    around = distance[rows, columns]
    nearest, farthest = around.min(1), around.max(1)
    edge = max(_LEAST_EDGE, math.sqrt(2) * math.tan(_STEEPEST) / focal)
    with np.errstate(invalid="ignore"):
        smooth = (nearest > 0) & (farthest < np.inf) & (farthest - nearest <= edge * nearest)
    found = np.einsum("kn,knc->kc", weights, values[rows, columns])
    return np.where((inside & smooth)[:, None], found, np.nan)


def _landmark_depth_at(image: MapImage, pixels: np.ndarray) -> np.ndarray:
    landmarks = image.landmarks()
    nearby = np.full(len(pixels), np.nan)
    if not len(landmarks.pixels):
        return nearby
    depth = geotrf(np.linalg.inv(image.pose), landmarks.points)[:, 2]
    radius = _LANDMARK_RADIUS * max(image.camera.size)
    apart, place = cKDTree(landmarks.pixels).query(pixels, distance_upper_bound=radius)
    known = np.isfinite(apart)
    nearby[known] = depth[place[known]]
    return np.where(nearby > 0, nearby, np.nan)


def _unprojected(image: MapImage, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return geotrf(image.pose, image.camera.rays(pixels) * depth[:, None])
