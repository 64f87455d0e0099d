"""How good interest points are: against known corners, and under known homographies.

DeTone et al., SuperPoint, 2018, appendices A and C. Pixels are (x, y).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist


@dataclass(frozen=True)
class Detection:
    """Points found against corners that are there.

    Attributes:
        precision, recall: of the points given.
        average_precision: mean precision over the recalls that a threshold of the scores gives.
        error: mean distance of found corners to the true ones, in pixels.
    """

    precision: float
    recall: float
    average_precision: float
    error: float


def detection(
    points: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    corners: Sequence[np.ndarray],
    reach: float = 3.0,
) -> Detection:
    """Over images, of which each has points (N, 2), their scores (N,) and corners (M, 2).

    A corner is found by one point at most, ``reach`` pixels away at most; the pairs are those of
    the least distance in all.
    """
    distances = [matched(p, c, reach) for p, c in zip(points, corners, strict=True)]
    distance = np.concatenate([np.zeros(0), *distances])
    order = np.argsort(-np.concatenate([np.zeros(0), *scores]), kind="stable")
    right = np.isfinite(distance)[order]
    total = sum(len(each) for each in corners)
    hits = right.cumsum()
    precisions = hits / np.arange(1, len(hits) + 1)
    # What a lower threshold gives as well counts for a recall, as in Pascal VOC.
    best = np.maximum.accumulate(precisions[::-1])[::-1]
    return Detection(
        precision=float(right.mean()) if len(right) else 0.0,
        recall=float(right.sum() / total) if total else 0.0,
        average_precision=float(best[right].sum() / total) if total else 0.0,
        error=float(distance[np.isfinite(distance)].mean()) if right.any() else float("nan"),
    )


def matched(points: np.ndarray, corners: np.ndarray, reach: float) -> np.ndarray:
    """Distance (N,) of points (N, 2) to the corner each of them finds among (M, 2); inf if none."""
    found = np.full(len(points), np.inf)
    if len(points) and len(corners):
        apart = cdist(points, corners)
        rows, columns = linear_sum_assignment(np.minimum(apart, reach + 1))
        near = apart[rows, columns] <= reach
        found[rows[near]] = apart[rows, columns][near]
    return found


def repeatability(
    points: np.ndarray,
    others: np.ndarray,
    homography: np.ndarray,
    size: tuple[int, int],
    reach: float = 3.0,
) -> float:
    """Part of the points of two images that the other has too, of those both images could have.

    Args:
        points, others: (N, 2) and (M, 2), found in an image and in its warped version.
        homography: (3, 3), from pixels of the image to those of the other.
        size: (width, height) of both.
        reach: pixels between a point where it should be and where it is.

    Returns:
        in [0, 1]; nan where no point lies in what both images show.
    """
    there, back = transform(points, homography), transform(others, np.linalg.inv(homography))
    there, others = there[_inside(there, size)], others[_inside(back, size)]
    if not len(there) + len(others):
        return float("nan")
    if not len(there) or not len(others):
        return 0.0
    near = (cKDTree(others).query(there)[0] <= reach).sum()
    near += (cKDTree(there).query(others)[0] <= reach).sum()
    return float(near / (len(there) + len(others)))


def transform(points: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """Points (N, 2) under a homography (3, 3)."""
    mapped = np.concatenate([points, np.ones((len(points), 1))], 1) @ homography.T
    return mapped[:, :2] / mapped[:, 2:]


def _inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return ((points >= -0.5) & (points < np.array(size) - 0.5)).all(1)
