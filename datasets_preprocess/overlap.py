"""Which pairs of many RGB-D views to learn from, by their overlap.

The overlap of two views is that of ``dust3r.utils.reprojection``, measured on few points.
"""

import heapq
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from dust3r.utils.reprojection import clean, pixels

_CHUNK = 256
_COARSE_SAMPLES = 48
_COARSE_MARGIN = 0.15
_SAMPLES = 768
_BINS = 8


def choose_pairs(
    depths: np.ndarray,
    intrinsics: np.ndarray,
    poses: np.ndarray,
    *,
    min_overlap: float = 0.2,
    max_overlap: float = 0.9,
    max_pairs: int | None = None,
    seed: int = 0,
    tolerance: float = 0.05,
    progress: bool = False,
) -> np.ndarray:
    """Pairs of N views with an overlap in [min_overlap, max_overlap]: (P, 3) float64 [i, j, score].

    ``depths`` (N, h, w) in metres, 0 = none, ``intrinsics`` (N, 3, 3) that match them (small maps
    suffice, see ``shrink``), ``poses`` (N, 4, 4). Rows have i < j and are sorted. With
    ``max_pairs`` a subset is taken as ``select_pairs`` describes. Cost as for ``score_pairs``.
    """
    scored = score_pairs(
        depths, intrinsics, poses, min_overlap=min_overlap, tolerance=tolerance, progress=progress
    )
    return select_pairs(
        scored,
        len(depths),
        min_overlap=min_overlap,
        max_overlap=max_overlap,
        max_pairs=max_pairs,
        seed=seed,
    )


def score_pairs(
    depths: np.ndarray,
    intrinsics: np.ndarray,
    poses: np.ndarray,
    *,
    min_overlap: float = 0.2,
    tolerance: float = 0.05,
    progress: bool = False,
) -> np.ndarray:
    """Overlaps of the pairs of N views that may reach ``min_overlap``: (P, 3) rows [i, j, score].

    Arguments as for ``choose_pairs``. Every pair is first tried with about 48 points of each view:
    the fraction inside the other frustum bounds the overlap from above, and pairs where it is more
    than 0.15 below ``min_overlap`` (over two standard errors of 48 points) are left out. The others
    are measured with about 768 points a view, one view against many at a time.

    On one core the trial takes about 2.5 us for each of the N (N - 1) / 2 pairs and the
    measurement 50 us for each pair that passes it: 2 s for 1,000 views along a walk through many
    rooms, 8 minutes for 5,000 views that nearly all see the same room. Memory is the depth maps,
    12 kB a view and N^2 bytes.
    """
    depths, intrinsics, poses = _checked_stacks(depths, intrinsics, poses)
    views = _Views(depths, intrinsics, poses, tolerance)
    promising = _promising(views, min_overlap - _COARSE_MARGIN, progress)
    rows: list[np.ndarray] = []
    for i in _track(len(depths), progress, "overlap"):
        others = i + 1 + np.flatnonzero(promising[i, i + 1 :])
        if len(others):
            score = np.minimum(views.seen_by_others(i, others), views.seen_from_others(i, others))
            rows.append(np.stack([np.full(len(others), i), others, score], axis=1))
    return np.concatenate(rows) if rows else np.empty((0, 3))


def select_pairs(
    scored: np.ndarray,
    count: int,
    *,
    min_overlap: float = 0.2,
    max_overlap: float = 0.9,
    max_pairs: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """The rows [i, j, score] of ``scored`` (P, 3) with a score in the range, ``max_pairs`` at most.

    A subset is spread over eight equal bins of overlap and, within them, over the ``count`` views:
    the bins take turns, each giving the pair whose views were used least so far; ``seed`` orders
    what is equal. The same arguments always give the same pairs, sorted by i then j.
    """
    if not 0 <= min_overlap <= max_overlap <= 1:
        raise ValueError(
            "overlaps are fractions from 0 to 1 with min_overlap <= max_overlap, got "
            f"{min_overlap} and {max_overlap}"
        )
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs must be at least 1, or None for all, got {max_pairs}")
    kept = scored[(scored[:, 2] >= min_overlap) & (scored[:, 2] <= max_overlap)]
    if max_pairs is not None and len(kept) > max_pairs:
        kept = kept[_spread(kept, count, min_overlap, max_overlap, max_pairs, seed)]
    return kept[np.lexsort((kept[:, 1], kept[:, 0]))].astype(np.float64)


class _Views:
    """N views with their sampled world points, ready to be projected into each other.

    Everything is float32 about the mean camera centre: positions in a city's coordinate frame would
    otherwise lose their millimetres.
    """

    def __init__(
        self, depths: np.ndarray, intrinsics: np.ndarray, poses: np.ndarray, tolerance: float
    ) -> None:
        poses = poses.copy()
        poses[:, :3, 3] -= poses[:, :3, 3].mean(axis=0)
        self.depths = depths
        self.tolerance = np.float32(tolerance)
        self.cameras = (intrinsics @ np.linalg.inv(poses)[:, :3]).astype(np.float32)
        self.points, self.valid = _world_points(depths, intrinsics, poses, _SAMPLES)
        self.coarse, self.coarse_valid = _world_points(depths, intrinsics, poses, _COARSE_SAMPLES)
        self.number_valid = np.maximum(self.valid.sum(axis=1), 1)

    def seen_by_others(self, i: int, others: np.ndarray) -> np.ndarray:
        """Fraction of view i's points that each of the other views (C,) sees too: (C,)."""
        points = self.points[i][:, self.valid[i]]
        fractions = []
        for part in _chunks(others):
            # One matrix product for all cameras is several times faster than one for each.
            projected = (self.cameras[part].reshape(-1, 4) @ points).reshape(len(part), 3, -1)
            fractions.append(self._agree(projected, part).sum(axis=1) / self.number_valid[i])
        return np.concatenate(fractions)

    def seen_from_others(self, i: int, others: np.ndarray) -> np.ndarray:
        """Fraction of the points of each of the other views (C,) that view i sees too: (C,)."""
        fractions = []
        for part in _chunks(others):
            agree = self._agree(self.cameras[i] @ self.points[part], np.full(len(part), i))
            fractions.append((agree & self.valid[part]).sum(axis=1) / self.number_valid[part])
        return np.concatenate(fractions)

    def _agree(self, homogeneous: np.ndarray, into: np.ndarray) -> np.ndarray:
        """Whether projected points (C, 3, M) agree with the depths of views ``into`` (C,)."""
        height, width = self.depths.shape[1:]
        z = homogeneous[:, 2]
        inside, column, row = pixels(homogeneous, height, width)
        flat = (into[:, None] * height + row) * width + column
        measured = self.depths.reshape(-1)[flat]
        return inside & (np.abs(measured - z) <= self.tolerance * z)


def _promising(views: _Views, threshold: float, progress: bool) -> np.ndarray:
    """(N, N) booleans, symmetric: are enough coarse points of each in the other's frustum?"""
    count, height, width = views.depths.shape
    points, valid = views.coarse, views.coarse_valid
    number_valid = np.maximum(valid.sum(axis=1), 1)
    promising = np.zeros((count, count), bool)
    for j in _track(count, progress, "candidates"):
        for part in _chunks(np.arange(count)):
            inside, _, _ = pixels(views.cameras[j] @ points[part], height, width)
            share = (inside & valid[part]).sum(axis=1) / number_valid[part]
            promising[part, j] = (share >= threshold) & (share > 0)
    return promising & promising.T


def _world_points(
    depths: np.ndarray, intrinsics: np.ndarray, poses: np.ndarray, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Homogeneous world points (N, 4, M) of a grid of pixels, and which are valid (N, M)."""
    height, width = depths.shape[1:]
    stride = max(1, int(np.sqrt(height * width / samples)))
    rows, columns = np.meshgrid(
        np.arange(min(stride // 2, height - 1), height, stride),
        np.arange(min(stride // 2, width - 1), width, stride),
        indexing="ij",
    )
    z = depths[:, rows.ravel(), columns.ravel()]
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    camera = np.linalg.inv(intrinsics) @ pixels * z[:, None]
    world = poses[:, :3, :3] @ camera + poses[:, :3, 3:]
    return np.concatenate([world, np.ones_like(world[:, :1])], axis=1).astype(np.float32), z > 0


def _spread(
    pairs: np.ndarray, count: int, lowest: float, highest: float, number: int, seed: int
) -> list[int]:
    """Indices of ``number`` of the pairs (P, 3), even over bins of overlap and over views."""
    width = max(highest - lowest, 1e-9) / _BINS
    bins = np.minimum((pairs[:, 2] - lowest) / width, _BINS - 1).astype(int)
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    ends = pairs[:, :2].astype(int).tolist()
    used = [0] * count

    def load(pair: int) -> tuple[int, int]:
        first, second = ends[pair]
        return max(used[first], used[second]), used[first] + used[second]

    heaps: list[list[tuple[int, int, int, int]]] = [[] for _ in range(_BINS)]
    for pair, place in enumerate(bins.tolist()):
        heaps[place].append((0, 0, order[pair], pair))
    for heap in heaps:
        heapq.heapify(heap)
    taken: list[int] = []
    while len(taken) < number:
        for heap in heaps:
            # Loads only grow, so an entry whose stored load is out of date goes back with today's.
            while heap and heap[0][:2] != load(heap[0][3]):
                pair = heap[0][3]
                heapq.heapreplace(heap, (*load(pair), order[pair], pair))
            if heap and len(taken) < number:
                pair = heapq.heappop(heap)[3]
                taken.append(pair)
                for view in ends[pair]:
                    used[view] += 1
    return taken


def _checked_stacks(
    depths: np.ndarray, intrinsics: np.ndarray, poses: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    depths, intrinsics, poses = np.asarray(depths), np.asarray(intrinsics), np.asarray(poses)
    count = len(depths)
    if depths.ndim != 3 or intrinsics.shape != (count, 3, 3) or poses.shape != (count, 4, 4):
        raise ValueError(
            "expected depths (N, h, w), intrinsics (N, 3, 3), poses (N, 4, 4), got "
            f"{depths.shape}, {intrinsics.shape}, {poses.shape}"
        )
    if not (np.isfinite(poses).all() and np.isfinite(intrinsics).all()):
        raise ValueError("poses or intrinsics are not finite: leave those views out first")
    depths = clean(depths).astype(np.float32)
    return depths, intrinsics.astype(np.float64), poses.astype(np.float64)


def _chunks(indices: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(indices), _CHUNK):
        yield indices[start : start + _CHUNK]


def _track(count: int, progress: bool, what: str) -> tqdm:
    return tqdm(range(count), desc=what, unit="view", disable=not progress, leave=False)
