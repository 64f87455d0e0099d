"""Which images show the same place, by matches of local features that one camera motion explains.

A pair network always answers; where two images share nothing, it puts the second somewhere, and
its confidence cannot be compared from one model to another. So the pixels are asked themselves, the
way structure from motion verifies pairs: SIFT (Lowe, 2004), the ratio test, and a fundamental
matrix (MAGSAC++, Barath et al., 2020), all OpenCV's.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from dust3r.utils.image import rgb

# On rooms unseen in training, six images each and three of another room: see docs/results.md.
LEAST_MATCHES = 12

# An image with fewer features than this cannot be told not to overlap.
_SPEAKS = 60
_FEATURES = 1000
_CONTRAST = 0.02
_RATIO = 0.8
_PIXELS_OFF = 1.0
_MINIMAL_SAMPLE = 8

View = dict[str, Any]


def overlapping_parts(
    images: Sequence[View], pairs: Sequence[tuple[View, View]], verbose: bool = False
) -> list[list[int]]:
    """Positions in ``images`` in groups that overlapping pairs connect, largest first.

    Only the given pairs are looked at. A group of two or more images joins another by at least two
    overlapping pairs: one may be chance. Images with next to no features, such as blank walls, are
    counted as overlapping with all they are paired with.
    """
    place = {int(view["idx"]): n for n, view in enumerate(images)}
    unordered = {tuple(sorted(place[int(v["idx"])] for v in pair)) for pair in pairs}
    features = [_features(view) for view in images]
    bar = tqdm(sorted(unordered), desc="checking overlap", disable=not verbose)
    joined = [(i, j) for i, j in bar if _overlap(features[i], features[j])]
    label = _joined_twice(joined, len(images))
    parts = [np.flatnonzero(label == one).tolist() for one in np.unique(label)]
    return sorted(parts, key=lambda part: (-len(part), part))


def matches(first: View, second: View) -> int:
    """Matches of two images that one fundamental matrix explains."""
    return _verified(_features(first), _features(second))


_Features = tuple[np.ndarray, np.ndarray]


def _features(view: View) -> _Features:
    """Positions (K, 2) and descriptors (K, 128) of one image."""
    grey = cv2.cvtColor((rgb(view["img"][0]) * 255).round().astype(np.uint8), cv2.COLOR_RGB2GRAY)
    mask = None
    if view.get("mask") is not None:
        mask = torch.as_tensor(view["mask"]).reshape(grey.shape).numpy().astype(np.uint8)
    sift = cv2.SIFT_create(_FEATURES, contrastThreshold=_CONTRAST)
    points, descriptors = sift.detectAndCompute(grey, mask)
    if descriptors is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    return np.float32([point.pt for point in points]), descriptors


def _overlap(first: _Features, second: _Features) -> bool:
    if min(len(first[0]), len(second[0])) < _SPEAKS:
        return True
    return _verified(first, second) >= LEAST_MATCHES


def _verified(first: _Features, second: _Features) -> int:
    if min(len(first[0]), len(second[0])) < _MINIMAL_SAMPLE:
        return 0
    nearest = cv2.BFMatcher().knnMatch(first[1], second[1], 2)
    distinct = [a for a, b in nearest if a.distance < _RATIO * b.distance]
    # Each feature once: a repeated texture matches many to one.
    distinct.sort(key=lambda match: match.distance)
    once = {match.trainIdx: match for match in reversed(distinct)}.values()
    if len(once) < _MINIMAL_SAMPLE:
        return 0
    ours = first[0][[match.queryIdx for match in once]]
    theirs = second[0][[match.trainIdx for match in once]]
    cv2.setRNGSeed(0)
    _, inliers = cv2.findFundamentalMat(ours, theirs, cv2.USAC_MAGSAC, _PIXELS_OFF, 0.999, 1000)
    return 0 if inliers is None else int(inliers.sum())


def _joined_twice(pairs: list[tuple[int, int]], count: int) -> np.ndarray:
    """Labels (count,) of components, cut where one pair alone joins two groups of two or more."""
    kept = list(pairs)
    for pair in pairs:
        without = _components([other for other in kept if other != pair], count)
        sides = [int((without == without[n]).sum()) for n in pair]
        if without[pair[0]] != without[pair[1]] and min(sides) > 1:
            kept.remove(pair)
    return _components(kept, count)


def _components(pairs: list[tuple[int, int]], count: int) -> np.ndarray:
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]
