"""Matches of many pairs of images, and the keypoints that several of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dust3r.export.colmap import HALF_PIXEL
from dust3r.model import AsymmetricCroCo3DStereo
from mast3r.matching import Matches, View, match_pairs

Size = tuple[int, int]
Keypoints = list[np.ndarray]
PairRows = dict[tuple[int, int], np.ndarray]


@dataclass(frozen=True)
class ImagePairMatches:
    """Matches of two images of a list, the i-th and the j-th, both from 0."""

    i: int
    j: int
    matches: Matches


def match_both_orders(
    model: AsymmetricCroCo3DStereo, pairs: Sequence[tuple[View, View]], **settings: Any
) -> list[ImagePairMatches]:
    """Matches of many pairs, in the order given and the other way round.

    Args:
        model: with descriptors.
        pairs: of ``dust3r.image_pairs.make_pairs``, each in one order (``symmetrize=False``); their
            ``idx`` become i and j. A pair of which a mask leaves nothing has no matches.
        settings: of ``mast3r.matching.match_pairs``.
    """
    usable = [pair for pair in pairs if all("mask" not in v or v["mask"].any() for v in pair)]
    both = [*usable, *((second, first) for first, second in usable)]
    if not both:
        return []
    return [
        ImagePairMatches(int(first["idx"]), int(second["idx"]), matches)
        for (first, second), matches in zip(both, match_pairs(model, both, **settings), strict=True)
    ]


def tracks(
    pair_matches: Sequence[ImagePairMatches], sizes: Sequence[Size], cells: np.ndarray
) -> tuple[Keypoints, PairRows]:
    """Keypoints of images, and which of them match.

    Args:
        pair_matches: in pixels of the images, centre of the first one at (0, 0).
        sizes: (width, height) of the N images.
        cells: (N,) sides of the cells whose pixels become one keypoint at their mean; where 0 only
            equal pixels are one.

    Returns:
        keypoints (K, 2) of every image; and for pairs i < j that match rows (M, 2) of keypoints of
        i and j, each at most once, the most confident first.

    Raises:
        ValueError: pairs of images that there are not, or pixels outside of an image.
    """
    pixels: list[list[np.ndarray]] = [[np.empty((0, 2))] for _ in sizes]
    for pair in pair_matches:
        if pair.i == pair.j or not all(0 <= n < len(sizes) for n in (pair.i, pair.j)):
            raise ValueError(
                f"a pair of the images {pair.i} and {pair.j}: give two different ones of the "
                f"{len(sizes)}, numbered from 0"
            )
        for n, xy in ((pair.i, pair.matches.xy1), (pair.j, pair.matches.xy2)):
            pixels[n].append(_inside(xy, sizes[n], pair))
    merged = [_merged(np.concatenate(xy), cell) for xy, cell in zip(pixels, cells, strict=True)]
    starts = [0] * len(sizes)
    joined: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for pair in pair_matches:
        ends = []
        for n in (pair.i, pair.j):
            ends.append(merged[n][1][starts[n] : starts[n] + len(pair.matches)])
            starts[n] += len(pair.matches)
        swap = pair.i > pair.j
        rows = np.stack(ends[::-1] if swap else ends, 1)
        key = (pair.j, pair.i) if swap else (pair.i, pair.j)
        joined.setdefault(key, []).append((rows, np.asarray(pair.matches.confidence)))
    rows_of = {
        key: _one_to_one(*map(np.concatenate, zip(*v, strict=True))) for key, v in joined.items()
    }
    return [points for points, _ in merged], {k: rows for k, rows in rows_of.items() if len(rows)}


def _inside(xy: np.ndarray, size: Size, pair: ImagePairMatches) -> np.ndarray:
    xy = np.asarray(xy, np.float64)
    if xy.shape != (len(pair.matches), 2):
        raise ValueError(
            f"matches of the images {pair.i} and {pair.j} have pixels of shape {xy.shape} and "
            f"{len(pair.matches)} confidences: expected (K, 2) and (K,)"
        )
    if not ((xy >= -HALF_PIXEL) & (xy <= np.array(size) - HALF_PIXEL)).all():
        raise ValueError(
            f"matches of the images {pair.i} and {pair.j} lie outside of an image of "
            f"{size[0]}x{size[1]} pixels (width x height): give pixels (x, y) of the images as "
            "they are stored"
        )
    return xy


def _merged(xy: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (K, 2) of pixels (N, 2), and which of them each pixel became, (N,)."""
    # Counted from the image's corner, cells of the network's pixels hold one of these each.
    keys = np.floor((xy + HALF_PIXEL) / cell) if cell else xy
    _, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    sums = [np.bincount(inverse, values, len(counts)) for values in xy.T]
    return np.stack(sums, 1) / counts[:, None], inverse


def _one_to_one(rows: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Rows of keypoints (M, 2) in which each occurs once, the most confident of (N, 2)."""
    rows = rows[np.argsort(-confidence, kind="stable")]
    for side in (0, 1):
        rows = rows[np.sort(np.unique(rows[:, side], return_index=True)[1])]
    return rows
