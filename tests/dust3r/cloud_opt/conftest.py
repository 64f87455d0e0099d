"""Alignment problems with a known answer: a ball on a floor under a dome, seen from around it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dust3r.cloud_opt import global_aligner
from dust3r.cloud_opt.base_opt import BaseOptimizer
from dust3r.image_pairs import make_pairs

BALL, FLOOR, DOME = 1.0, 1.0, 8.0
# A pair's points with outliers are anywhere in a cube of this half side.
FAR = 3.0


@dataclass(frozen=True)
class Problem:
    """``output`` as ``dust3r.inference.inference`` returns it, and the truth.

    Attributes:
        poses: (N, 4, 4) camera-to-world.
        intrinsics: (N, 3, 3).
        depths: (H, W) per image.
        scales: (P,) by which the points of each pair are larger than the truth.
    """

    output: dict[str, Any]
    poses: Tensor
    intrinsics: Tensor
    depths: list[Tensor]
    scales: Tensor

    @property
    def edges(self) -> list[tuple[int, int]]:
        return list(zip(self.output["view1"]["idx"], self.output["view2"]["idx"], strict=True))

    @property
    def focals(self) -> Tensor:
        return self.intrinsics[:, 0, 0]

    def aligner(self, **options: Any) -> BaseOptimizer:
        return global_aligner(self.output, **{"verbose": False} | options)

    def aligned(self, *, niter: int = 300, init: str = "mst", **options: Any) -> BaseOptimizer:
        scene = self.aligner(**options)
        scene.compute_global_alignment(init=init, niter=niter)
        return scene

    def reordered(self, order: Sequence[int]) -> "Problem":
        """The same with its pairs, or some of them, in another order."""

        def chosen(values: Any) -> Any:
            return values[order] if isinstance(values, Tensor) else [values[p] for p in order]

        output = {
            name: part and {key: chosen(values) for key, values in part.items()}
            for name, part in self.output.items()
        }
        return Problem(output, self.poses, self.intrinsics, self.depths, self.scales[order])

    def maps(self, image: int) -> list[tuple[dict[str, Any], int, str]]:
        """(prediction, pair, name of its points) of all that is said of one image."""
        sides = ("pred1", "pts3d"), ("pred2", "pts3d_in_other_view")
        return [
            (self.output[pred], pair, key)
            for pair, edge in enumerate(self.edges)
            for n, (pred, key) in zip(edge, sides, strict=True)
            if n == image
        ]


@pytest.fixture
def problem() -> Callable[..., Problem]:
    return make_problem


@pytest.fixture
def pose_error() -> Callable[[Tensor, Tensor], float]:
    return largest_pose_error


def make_problem(
    count: int = 4,
    sizes: tuple[int, int] | Sequence[tuple[int, int]] = (36, 48),
    *,
    focals: float | Sequence[float | tuple[float, float]] = 45.0,
    centre_shift: tuple[float, float] = (0.0, 0.0),
    graph: str = "complete",
    symmetrize: bool = True,
    pairs: Sequence[tuple[int, int]] | None = None,
    noise: float = 0.0,
    outliers: float = 0.0,
    marked: bool = True,
    sigma: float | None = None,
    suffix: str = "",
    seed: int = 0,
) -> Problem:
    """Pairs of ``count`` images.

    Args:
        sizes: (height, width) of all images or of each.
        focals: of all images, or of each: one or (fx, fy).
        centre_shift: of the principal points from the middles (width / 2, height / 2).
        pairs: instead of those of ``graph``.
        noise: standard deviation of the points over their depth.
        outliers: fraction of every map's points that are anywhere.
        marked: outliers have the confidence 1.
        sigma: state a depth and a variance of this relative standard deviation, and a hundred
            times it for outliers, under keys as of GeoUQ, or with ``suffix='_feat'`` of FeatUQ;
            with ``suffix='_xyz'`` a Gaussian of each point, whose root of the expected squared
            error is so much of its distance from its own camera.
    """
    rng = np.random.default_rng(seed)
    sizes = [sizes] * count if isinstance(sizes[0], int) else list(sizes)
    mixed = len(set(sizes)) > 1
    focals = [focals] * count if isinstance(focals, float) else focals
    poses = np.stack([_pose(n) for n in range(count)])
    intrinsics = np.stack(
        [_intrinsics(f, s, centre_shift) for f, s in zip(focals, sizes, strict=True)]
    )
    depths = [_render(*one) for one in zip(poses, intrinsics, sizes, strict=True)]
    clouds = [_unproject(*one) for one in zip(depths, intrinsics, poses, strict=True)]
    if pairs is None:
        views = [{"idx": n} for n in range(count)]
        chosen = make_pairs(views, graph, symmetrize=symmetrize)
        pairs = [(a["idx"], b["idx"]) for a, b in chosen]
    images = [np.full((3, *size), 2 * n / count - 1) for n, size in enumerate(sizes)]
    scales = np.exp(rng.uniform(-1, 1, len(pairs)))

    def view(side: int) -> dict[str, Any]:
        numbers = [pair[side] for pair in pairs]
        return {
            "img": _collate([images[n] for n in numbers], mixed),
            "true_shape": torch.tensor([sizes[n] for n in numbers]),
            "idx": numbers,
            "instance": [str(n) for n in numbers],
        }

    def prediction(side: int) -> dict[str, Any]:
        said: dict[str, list[np.ndarray]] = {}
        for pair, scale in zip(pairs, scales, strict=True):
            n, frame = pair[side], np.linalg.inv(poses[pair[0]])
            points = clouds[n] @ frame[:3, :3].T + frame[:3, 3]
            points = points + noise * depths[n][..., None] * rng.normal(size=points.shape)
            wild = rng.uniform(size=sizes[n]) < outliers
            points[wild] = rng.uniform(-FAR, FAR, size=(wild.sum(), 3))
            conf = rng.uniform(4, 12, size=sizes[n])
            if marked:
                conf[wild] = 1.0
            maps = {"pts3d" if side == 0 else "pts3d_in_other_view": scale * points, "conf": conf}
            if sigma is not None and suffix == "_xyz":
                away = np.linalg.norm(clouds[n] - poses[n, :3, 3], axis=-1)
                spread = np.where(wild, 100 * sigma, sigma) * away * scale
                shares = np.array([0.5, 0.3, 0.2])[:, None, None]
                maps["xyz_mu"] = np.moveaxis(scale * points, -1, 0)
                maps["xyz_logvar"] = np.log(shares * np.square(spread))
            elif sigma is not None:
                mean, variance = _UNCERTAINTY_KEYS[suffix]
                spread = np.where(wild, 100 * sigma, sigma) * depths[n]
                maps |= {mean: depths[n][None], variance: np.square(spread)[None]}
            for key, value in maps.items():
                said.setdefault(key, []).append(value)
        return {key: _collate(values, mixed) for key, values in said.items()}

    output = {"view1": view(0), "view2": view(1), "pred1": prediction(0), "pred2": prediction(1)}
    return Problem(
        output={**output, "loss": None},
        poses=torch.from_numpy(poses),
        intrinsics=torch.from_numpy(intrinsics),
        depths=[torch.from_numpy(depth).float() for depth in depths],
        scales=torch.from_numpy(scales),
    )


def largest_pose_error(estimated: Tensor, truth: Tensor) -> float:
    """Degrees by which the worst pair of cameras is off: relative rotation, or direction of the
    way from one to the other. Free of the world's frame and scale."""
    relative = [torch.linalg.inv(p)[:, None] @ p for p in (estimated.double(), truth.double())]
    first, second = (one[~torch.eye(len(truth), dtype=torch.bool)] for one in relative)
    rotation = first[:, :3, :3].mT @ second[:, :3, :3]
    # From the chord and the sine: the arccosine is blind to small angles.
    turned = (rotation - torch.eye(3).double()).flatten(1).norm(dim=1) / 8**0.5
    ways = [torch.nn.functional.normalize(one[:, :3, 3], dim=1) for one in (first, second)]
    apart = (ways[0] - ways[1]).norm(dim=1) / 2
    return float(torch.rad2deg(2 * torch.cat([turned, apart]).clamp_max(1).asin()).max())


_UNCERTAINTY_KEYS = {"": ("depth_mu", "depth_var"), "_feat": ("depth_mean_feat", "depth_var_feat")}


def _collate(values: Sequence[np.ndarray], mixed: bool) -> Tensor | list[Tensor]:
    tensors = [torch.from_numpy(value).float() for value in values]
    return tensors if mixed else torch.stack(tensors)


def _pose(n: int) -> np.ndarray:
    angle = 0.3 * n
    centre = np.array([3.5 * np.sin(angle), -0.5 - 0.2 * np.cos(2 * n), -3.5 * np.cos(angle)])
    z = np.array([0.1 * np.sin(3 * n), 0.1, 0.1 * np.cos(n)]) - centre
    z /= np.linalg.norm(z)
    x = np.cross([0.05 * np.sin(5 * n), 1.0, 0.0], z)
    x /= np.linalg.norm(x)
    pose = np.eye(4)
    pose[:3] = np.stack([x, np.cross(z, x), z, centre], axis=1)
    return pose


def _intrinsics(
    focal: float | tuple[float, float], size: tuple[int, int], shift: tuple[float, float]
) -> np.ndarray:
    height, width = size
    fx, fy = np.broadcast_to(focal, 2)
    return np.array([[fx, 0, width / 2 + shift[0]], [0, fy, height / 2 + shift[1]], [0, 0, 1]])


def _rays(k: np.ndarray, height: int, width: int) -> np.ndarray:
    v, u = np.mgrid[:height, :width]
    return np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(k).T


def _render(pose: np.ndarray, k: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth (H, W), z."""
    rays, centre = _rays(k, *size) @ pose[:3, :3].T, pose[:3, 3]
    square, half = (rays**2).sum(-1), rays @ centre
    with np.errstate(invalid="ignore", divide="ignore"):
        ball = (-half - np.sqrt(half**2 - square * (centre @ centre - BALL**2))) / square
        floor = (FLOOR - centre[1]) / rays[..., 1]
    dome = (-half + np.sqrt(half**2 - square * (centre @ centre - DOME**2))) / square
    floor = np.where(floor > 0, floor, np.inf)
    return np.minimum(np.nan_to_num(ball, nan=np.inf), np.minimum(floor, dome))


def _unproject(depth: np.ndarray, k: np.ndarray, pose: np.ndarray) -> np.ndarray:
    return _rays(k, *depth.shape) * depth[..., None] @ pose[:3, :3].T + pose[:3, 3]
