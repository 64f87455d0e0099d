"""Sparse alignment with a known answer: forward results made from true depth and poses."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from alignment_problems import Truth, depth_errors

from dust3r.datasets.correspondences import all_correspondences
from dust3r.reconstruction import Source
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf
from mast3r.cloud_opt.cache import ForwardResult

_SEED_SPACING = 8


class KnownResults:
    """What ``mast3r.cloud_opt.forward.ForwardResults`` is, of a network that errs in a known way.

    Args:
        truth: cameras and depth.
        noise: of depth, relative, as of ``alignment_problems.noisy_pairs``.
        pixel_noise: standard deviation of a match's coordinates in image 2.
        outliers: share of matches that are anywhere.
        edges: pairs i < j, all where None.
    """

    def __init__(
        self,
        truth: Truth,
        noise: float,
        pixel_noise: float,
        outliers: float = 0.0,
        edges: Sequence[tuple[int, int]] | None = None,
        seed: int = 0,
    ):
        self.edges = list(combinations(range(len(truth)), 2)) if edges is None else list(edges)
        height, width = truth.depths.shape[1:]
        self.computed = 0
        self.views = [_view(n, height, width) for n in range(len(truth))]
        rng = np.random.default_rng(seed)
        geometry = [_geometry(truth, n) for n in range(len(truth))]
        self._results = {}
        for i, j in (pair for a, b in self.edges for pair in ((a, b), (b, a))):
            error, confidence = depth_errors(truth.depths[i], noise, 0.0, rng)
            points = depthmap_to_pts3d(truth.depths[i].astype(float), truth.intrinsics[i]) + error
            pixels = _matches(geometry[i], geometry[j], pixel_noise, outliers, rng)
            self._results[i, j] = ForwardResult(
                torch.from_numpy(points * np.exp(rng.uniform(-0.5, 0.5))).float(),
                torch.from_numpy(confidence).float(),
                torch.from_numpy(pixels),
                torch.from_numpy(rng.uniform(1, 10, len(pixels))).float(),
            )

    def get(self, first: int, second: int) -> ForwardResult:
        """Of the pass with image ``first`` as its first."""
        return self._results[first, second]


def _view(number: int, height: int, width: int) -> dict:
    return {
        "img": torch.zeros(1, 3, height, width),
        "true_shape": np.array([[height, width]], np.int32),
        "idx": number,
        "instance": str(number),
        "source": Source(f"image_{number:03d}.png", None, (width, height), np.eye(3)),
    }


def _geometry(truth: Truth, n: int) -> dict:
    """One image as ``all_correspondences`` reads it."""
    depth = truth.depths[n]
    points = depthmap_to_pts3d(depth.astype(float), truth.intrinsics[n])
    return {
        "depthmap": depth,
        "valid_mask": depth > 0,
        "pts3d": geotrf(truth.poses[n], points),
        "camera_pose": truth.poses[n],
        "camera_intrinsics": truth.intrinsics[n],
        "true_shape": np.array(depth.shape),
    }


def _matches(
    view1: dict, view2: dict, noise: float, outliers: float, rng: np.random.Generator
) -> np.ndarray:
    """(K, 4) int64 of the grid pixels of view 1 that view 2 sees."""
    found = all_correspondences(view1, view2)
    chosen = (found.first % _SEED_SPACING == _SEED_SPACING // 2).all(1)
    first, second = found.first[chosen], found.second[chosen]
    height, width = view2["depthmap"].shape
    second = np.rint(second + rng.normal(0, noise, second.shape)) if noise else second
    wrong = rng.random(len(second)) < outliers
    anywhere = np.stack([rng.integers(0, width, len(second)), rng.integers(0, height, len(second))])
    second = np.where(wrong[:, None], anywhere.T, second).clip(0, (width - 1, height - 1))
    return np.concatenate([first, second], 1).astype(np.int64)
