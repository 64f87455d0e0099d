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
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from tqdm import tqdm

from dust3r.utils.image import rgb

# On rooms unseen in training, six images each and three of another room: see docs/results.md.
LEAST_MATCHES = 12
# Enough for one pair to join two groups: twice what chance gave in 600 pairs of different rooms.
_LONE_MATCHES = 24

# Of an image with fewer features than this nobody can tell that it does not overlap.
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

    Only the given pairs are looked at. A group of two or more images joins another by two
    overlapping pairs or one with many matches: one with few may be chance, if other pairs could
    have confirmed it. Images with next to no features, such as blank walls, are counted as
    overlapping with those of the largest group that they are paired with.
    """
    place = {int(view["idx"]): n for n, view in enumerate(images)}
    unordered = {tuple(sorted(place[int(v["idx"])] for v in pair)) for pair in pairs}
    features = [_features(view) for view in images]
    speaks = np.array([len(points) >= _SPEAKS for points, _ in features])
    told = [pair for pair in sorted(unordered) if speaks[list(pair)].all()]
    bar = tqdm(told, desc="checking overlap", disable=not verbose)
    verified = {(i, j): _verified(features[i], features[j]) for i, j in bar}
    joined = _joined_firmly(verified, len(images))
    if not speaks.all():
        home = _largest(joined, speaks)
        silent = set(np.flatnonzero(~speaks).tolist())
        joined += [pair for pair in unordered - set(told) if set(pair) <= home | silent]
    return connected_groups(joined, len(images))


def connected_groups(pairs: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    """0 .. count - 1 in groups that pairs connect, largest first."""
    label = _components(pairs, count)
    groups = [np.flatnonzero(label == one).tolist() for one in np.unique(label)]
    return sorted(groups, key=lambda group: (-len(group), group))


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
    return int(agreeing(ours, theirs, _PIXELS_OFF).sum())


def agreeing(xy1: np.ndarray, xy2: np.ndarray, pixels_off: float) -> np.ndarray:
    """(K,) bool: matches (K, 2) and (K, 2) of two images that one fundamental matrix explains.

    Args:
        pixels_off: largest distance to the epipolar line.
    """
    if len(xy1) < _MINIMAL_SAMPLE:
        return np.zeros(len(xy1), bool)
    xy1, xy2 = (np.asarray(xy, np.float64) for xy in (xy1, xy2))
    # The sampling of RANSAC would otherwise depend on what ran before.
    cv2.setRNGSeed(0)
    try:
        _, inliers = cv2.findFundamentalMat(xy1, xy2, cv2.USAC_MAGSAC, pixels_off, 0.999, 1000)
    except cv2.error:
        # OpenCV 5 fails on photographs from one spot, or one taken twice: no parallax fixes it.
        _, inliers = cv2.findHomography(xy1, xy2, cv2.USAC_MAGSAC, pixels_off)
    return np.zeros(len(xy1), bool) if inliers is None else inliers.ravel() > 0


def _joined_firmly(verified: dict[tuple[int, int], int], count: int) -> list[tuple[int, int]]:
    """Overlapping pairs, without those that alone join two groups and may do so by chance.

    Args:
        verified: matches of every pair that was looked at.
    """
    joined = [pair for pair, found in verified.items() if found >= LEAST_MATCHES]
    kept = list(joined)
    # A pair that alone joins two groups is in every spanning tree.
    for pair in _spanning_tree(joined, count):
        without = _components([other for other in joined if other != pair], count)
        sides = without[list(pair)]
        lone = sides[0] != sides[1] and min((without == side).sum() for side in sides) > 1
        if lone and verified[pair] < _LONE_MATCHES:
            others = ({without[i], without[j]} for i, j in verified if (i, j) != pair)
            if any(ends == set(sides) for ends in others):
                kept.remove(pair)
    return kept


def _largest(pairs: list[tuple[int, int]], members: np.ndarray) -> set[int]:
    """The largest of the groups that pairs make of ``members``; all, where no two are joined."""
    label = _components(pairs, len(members))
    sizes = np.bincount(label[members], minlength=label.max() + 1)
    chosen = members & (label == sizes.argmax()) if sizes.max() > 1 else members
    return set(np.flatnonzero(chosen).tolist())


def _spanning_tree(pairs: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    tree = minimum_spanning_tree(_graph(pairs, count)).tocoo()
    return list(zip(tree.row.tolist(), tree.col.tolist(), strict=True))


def _components(pairs: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    return connected_components(_graph(pairs, count), directed=False)[1]


def _graph(pairs: Sequence[tuple[int, int]], count: int) -> coo_matrix:
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    return coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
