"""Alignment with a known answer: pairs made from true depth, and how far off cameras are.

What ``bench_alignment.py`` times and ``eval_reconstruction.py`` compares with.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import cv2
import numpy as np
import torch

from datasets_preprocess.rooms.produce import Recipe, plan_scene
from datasets_preprocess.rooms.raycast import RayGrid, Solids, cast
from dust3r.evaluation.image_sets import Truth
from dust3r.evaluation.pose_measures import focal_errors, pose_errors
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf

__all__ = ["Truth", "depth_errors", "focal_errors", "noisy_pairs", "pose_errors", "room"]

# Errors of networks are as much alike among neighbours as they are a pixel's own; fields of the
# former have this many knots along a side.
_KNOTS = 8
_OUTLIER_SPREAD, _TOLD_OUTLIERS = 0.3, 0.7


def room(
    number: int, count: int = 8, size: tuple[int, int] = (224, 160), step: int = 2, seed: int = 77
) -> Truth:
    """``count`` views of ``size`` (width, height) along a walk, every ``step`` frames (0.2 m each),
    in synthetic room ``number`` of a ``seed``."""
    shoot = plan_scene(Recipe(1 + step * (count - 1), size, seed=seed), number)
    solids, poses = Solids(shoot.room.primitives), shoot.poses[::step]
    depths = [
        cast(solids, RayGrid.of_pixels(shoot.intrinsics, pose, *size)).depth for pose in poses
    ]
    return Truth(poses, np.tile(shoot.intrinsics, (count, 1, 1)), np.stack(depths))


def noisy_pairs(
    truth: Truth,
    noise: float,
    outliers: float = 0.0,
    seed: int = 0,
    edges: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """What ``dust3r.inference.inference`` would return of a network that errs in a known way.

    Ordered pairs ``edges``, all where None, each with a scale of its own. Points are off by
    ``noise`` times their depth, and more the farther they are; half of that varies from pixel to
    pixel, half slowly over the image. A fraction ``outliers`` is off by 30 % of depth. Confidence
    falls with the error, and with chance.
    """
    rng = np.random.default_rng(seed)
    height, width = truth.depths.shape[1:]
    clouds = depthmap_to_pts3d(truth.depths.astype(float), truth.intrinsics, truth.poses)
    edges = list(permutations(range(len(truth)), 2)) if edges is None else list(edges)
    maps = [torch.empty(len(edges), height, width, 3) for _ in range(2)]
    confidences = [torch.empty(len(edges), height, width) for _ in range(2)]
    for pair, (first, second) in enumerate(edges):
        scale = np.exp(rng.uniform(-0.5, 0.5))
        for side, n in enumerate((first, second)):
            error, confidence = depth_errors(truth.depths[n], noise, outliers, rng)
            points = geotrf(np.linalg.inv(truth.poses[first]), clouds[n]) + error
            points[truth.depths[n] <= 0] = np.nan
            maps[side][pair] = torch.from_numpy(scale * points)
            confidences[side][pair] = torch.from_numpy(confidence)

    def view(side: int) -> dict[str, Any]:
        numbers = [edge[side] for edge in edges]
        return {
            "img": torch.zeros(1, 3, height, width).expand(len(edges), -1, -1, -1),
            "true_shape": torch.tensor([[height, width]]).repeat(len(edges), 1),
            "idx": numbers,
            "instance": [str(n) for n in numbers],
        }

    keys = "pts3d", "pts3d_in_other_view"
    predictions = [{key: maps[side], "conf": confidences[side]} for side, key in enumerate(keys)]
    return {
        "view1": view(0),
        "view2": view(1),
        "pred1": predictions[0],
        "pred2": predictions[1],
        "loss": None,
    }


def depth_errors(
    depth: np.ndarray, noise: float, outliers: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Errors (H, W, 3) of the points of a depth map (H, W), and confidences (H, W)."""
    height, width = depth.shape
    knots = rng.standard_normal((_KNOTS, _KNOTS, 3))
    smooth = cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC)
    mixed = (rng.standard_normal((height, width, 3)) + smooth / smooth.std()) / 2**0.5
    median = np.median(depth[depth > 0]) if (depth > 0).any() else 1.0
    spread = noise * depth * np.sqrt(depth / median)
    error = spread[..., None] * mixed
    size = np.linalg.norm(mixed, axis=-1).clip(0.05)
    confidence = 1 + np.exp(1 + 0.5 * rng.standard_normal(depth.shape)) / size
    wild = rng.random(depth.shape) < outliers
    error[wild] = _OUTLIER_SPREAD * depth[wild, None] * rng.standard_normal((wild.sum(), 3))
    told = wild & (rng.random(depth.shape) < _TOLD_OUTLIERS)
    confidence[told] = 1 + 0.2 * rng.random(told.sum())
    return error, confidence
