"""Pixels of two views that show the same point, found from their depth, poses and intrinsics."""

from typing import NamedTuple

import numpy as np

from dust3r.datasets.combine import View
from dust3r.utils.geometry import geotrf, inv, project

# Two pixels see one surface if the depths agree to this share: a pixel's slant on steep surfaces
# and the noise of depth sensors stay below it, occlusions that matter do not.
DEPTH_TOLERANCE = 0.05

# Pixels nearer than this to where a point truly lands are not known not to show it.
_TOO_NEAR = 4.0


class Correspondences(NamedTuple):
    """Pixels (x, y) of two views, (N, 2) int32, and which of them correspond, (N,) bool."""

    first: np.ndarray
    second: np.ndarray
    valid: np.ndarray


def sample_correspondences(
    view1: View, view2: View, count: int, negatives: float, rng: np.random.Generator
) -> Correspondences:
    """``count`` pairs of pixels, of which a share of at least ``negatives`` do not correspond.

    Of all correspondences as many as fit are drawn evenly; the rest is filled with pairs of pixels
    that are known not to show one point, the first of them a pixel with depth.

    Args:
        view1, view2: views of the contract, on the grid they travel on; pixels are of that grid.
        count: pairs of pixels.
        negatives: share between 0 and 1; more where there are too few correspondences.
        rng: source of all chance.
    """
    first, second = _draw_matches(view1, view2, count - round(count * negatives), rng)
    num_valid = len(first)
    wrong = _wrong_pairs((view1, view2), (first, second), count - num_valid, rng)
    return Correspondences(
        _columns_rows(np.concatenate([first, wrong[0]]), view1),
        _columns_rows(np.concatenate([second, wrong[1]]), view2),
        np.arange(count) < num_valid,
    )


def all_correspondences(view1: View, view2: View) -> Correspondences:
    """Every pixel of view 1 with the pixel of view 2 that shows its point, where one does.

    A pixel's point is seen in view 2 if it lies in front of the camera and within the image, and
    the surface there is at the same depth. Pairs are one to one: from view 2, the first pixel has
    to be the nearest in turn.
    """
    first, second = _matches(view1, view2, np.flatnonzero(view1["valid_mask"]))
    return Correspondences(
        _columns_rows(first, view1), _columns_rows(second, view2), np.ones(len(first), bool)
    )


def _draw_matches(
    view1: View, view2: View, wanted: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """``wanted`` of all correspondences, or all where there are fewer, as ``_matches`` gives them.

    Pixels are looked at in random order until there are enough, mostly a small part of them.
    """
    order = rng.permutation(np.flatnonzero(view1["valid_mask"]))
    parts, found, start, size = [], 0, 0, 2 * wanted
    while found < wanted and start < len(order):
        parts.append(_matches(view1, view2, order[start : start + size]))
        found += len(parts[-1][0])
        start, size = start + size, 2 * size
    if not parts:
        return order[:0], order[:0]
    first, second = (np.concatenate(side)[:wanted] for side in zip(*parts, strict=True))
    return first, second


def _matches(view1: View, view2: View, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The correspondences among pixels ``first`` of view 1, as flat indices into both views."""
    there, depth = _land(view1, view2, first)
    second = _nearest(there, view2)
    inside = second >= 0
    first, second, depth = first[inside], second[inside], depth[inside]
    surface = view2["depthmap"].reshape(-1)[second]
    seen = view2["valid_mask"].reshape(-1)[second]
    seen &= np.abs(depth - surface) <= DEPTH_TOLERANCE * surface
    first, second = first[seen], second[seen]
    mutual = _nearest(_land(view2, view1, second)[0], view1) == first
    return first[mutual], second[mutual]


def _wrong_pairs(
    views: tuple[View, View],
    taken: tuple[np.ndarray, np.ndarray],
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices (count,) into both views of pixels whose points are known to differ.

    Pixels that are ``taken`` by right pairs are left out, so that a match has no copy among them.
    """
    if views[1]["valid_mask"].any() and not views[0]["valid_mask"].any():
        return _wrong_pairs(views[::-1], taken[::-1], count, rng)[::-1]
    known = views[0]["valid_mask"].reshape(-1)
    everything = np.ones(views[1]["valid_mask"].size, bool)
    first = _draw_outside(known if known.any() else ~known, taken[0], count, rng)
    second = _draw_outside(everything, taken[1], count, rng)
    there, _ = _land(*views, first)
    near = (np.abs(there - _columns_rows(second, views[1])) < _TOO_NEAR).all(1)
    # Half the image on is far enough; the pixel there may be taken, which is as good as never.
    height, width = views[1]["valid_mask"].shape
    second[near] = (second[near] + height // 2 * width + width // 2) % (height * width)
    return first, second


def _draw_outside(
    mask: np.ndarray, taken: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Flat indices (count,) where ``mask``, but not ``taken`` unless all of it is."""
    free = mask.copy()
    free[taken] = False
    return rng.choice(np.flatnonzero(free if free.any() else mask), count)


def _land(source: View, target: View, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where (n, 2) the points of ``source``'s flat ``pixels`` fall in ``target``, and their depths.

    Points behind the camera fall outside, at -inf.
    """
    points = source["pts3d"].reshape(-1, 3)[pixels]
    in_camera = geotrf(inv(target["camera_pose"]), points)
    there, depth = project(in_camera, target["camera_intrinsics"])
    height, width = target["true_shape"]
    if target["valid_mask"].shape != (height, width):
        there = there[:, ::-1]
    return np.where((depth > 0)[:, None], there, -np.inf), depth


def _nearest(there: np.ndarray, view: View) -> np.ndarray:
    """Flat index (n,) of the pixel nearest to each of ``there`` (n, 2); -1 outside the image."""
    height, width = view["valid_mask"].shape
    columns, rows = np.floor(there.clip(-2, max(height, width) + 2) + 0.5).astype(np.int64).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    return np.where(inside, rows * width + columns, -1)


def _columns_rows(flat: np.ndarray, view: View) -> np.ndarray:
    width = view["valid_mask"].shape[1]
    return np.stack([flat % width, flat // width], axis=1).astype(np.int32)
