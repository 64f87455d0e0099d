"""Similarities and scales that take a prediction to the truth of its image, before errors count."""

import math

import torch
from torch import Tensor

from dust3r.cloud_opt.similarity import apply, from_parts, register

POINT_ALIGNMENTS = ("umeyama", "robust")
DEPTH_ALIGNMENTS = ("none", "median", "lstsq")

_FEWEST_POINTS = 4
_REGISTERED = 20_000
# Of the second largest principal variance to the largest, below which points lie on one line and
# leave a rotation undetermined.
_FLATTEST = 1e-8


def sim3(points: Tensor, targets: Tensor) -> Tensor:
    """Similarity (4, 4) that takes points (N, 3) closest to targets (N, 3) in squared distance.

    The closed form of Umeyama (1991), in float64.
    """
    points, targets = points.double(), targets.double()
    centre, goal = points.mean(0), targets.mean(0)
    spread, wanted = points - centre, targets - goal
    u, sizes, vt = torch.linalg.svd(wanted.T @ spread)
    sign = torch.ones(3, dtype=torch.float64, device=points.device)
    sign[2] = torch.linalg.det(u @ vt).sign()
    rotation = u @ torch.diag(sign) @ vt
    scale = (sizes * sign).sum() / spread.square().sum()
    return from_parts(rotation, goal - scale * rotation @ centre, scale)


def align_points(points: Tensor, targets: Tensor, kind: str = "umeyama") -> Tensor | None:
    """Points (N, 3) in the frame and scale of ``targets`` (N, 3), float32; None where undefined.

    A similarity is undefined by fewer than four points, or by points, on either side, that lie on
    one line or on one spot.

    Args:
        kind: ``'umeyama'``: of least squares, as in published protocols, which a few far outliers
            can pull along; ``'robust'``: reweighted by a Cauchy kernel about the median residual,
            fitted to every n-th point where there are more than 20,000.

    Raises:
        ValueError: ``kind`` is neither.
    """
    if kind not in POINT_ALIGNMENTS:
        raise ValueError(f"alignment {kind!r} is unknown; choose {' or '.join(POINT_ALIGNMENTS)}")
    if len(points) < _FEWEST_POINTS or _degenerate(points) or _degenerate(targets):
        return None
    if kind == "umeyama":
        similarity = sim3(points, targets)
    else:
        chosen = slice(None, None, -(-len(points) // _REGISTERED))
        given, wanted = points[None, chosen], targets[None, chosen]
        weights = torch.ones(given.shape[:2], device=points.device)
        similarity = register(given, wanted, weights)[0]
    return apply(similarity, points.double()).float()


def depth_scale(depth: Tensor, truth: Tensor, kind: str) -> float:
    """Factor that brings depths (N,) to the true ones (N,), both above 0.

    Args:
        kind: ``'none'``: 1; ``'median'``: ratio of the medians; ``'lstsq'``: of least squares.

    Raises:
        ValueError: ``kind`` is none of these.
    """
    if kind == "none":
        return 1.0
    if kind == "median":
        middle = depth.median().item()
        return truth.median().item() / middle if middle else math.inf
    if kind == "lstsq":
        depth, truth = depth.double(), truth.double()
        return ((depth @ truth) / (depth @ depth)).item()
    raise ValueError(f"scale alignment {kind!r} is unknown; choose {', '.join(DEPTH_ALIGNMENTS)}")


def _degenerate(points: Tensor) -> bool:
    spread = (points - points.mean(0)).double()
    variances = torch.linalg.eigvalsh(spread.T @ spread)
    return not bool(variances[1] > _FLATTEST * variances[2])
