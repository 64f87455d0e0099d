"""Similarities and scales that take a prediction to the truth of its image, before errors count."""

import math

import torch
from torch import Tensor

from dust3r.cloud_opt.similarity import from_parts, register

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
    return _similarity(_Cloud(points), _Cloud(targets))


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
    if len(points) < _FEWEST_POINTS:
        return None
    given, wanted = _Cloud(points), _Cloud(targets)
    if given.degenerate or wanted.degenerate:
        return None
    if kind == "umeyama":
        similarity = _similarity(given, wanted)
    else:
        chosen = slice(None, None, -(-len(points) // _REGISTERED))
        few = points[None, chosen], targets[None, chosen]
        weights = torch.ones(few[0].shape[:2], device=points.device)
        similarity = register(*few, weights)[0]
    linear, shift = similarity[:3, :3], similarity[:3, 3]
    # About the centre numbers are small, so that only their rounding to float32 is lost.
    return (linear @ given.spread).add_((linear @ given.centre + shift)[:, None]).T.float()


def misfits(points: Tensor, truth: Tensor, valid: Tensor, kind: str = "umeyama") -> Tensor:
    """True less predicted points (B,H,W,3) after a similarity of each image, float32.

    The similarity is fitted to the pixels of ``valid`` (B,H,W) bool whose prediction is finite; all
    others are NaN, and so are those of images that have none. ``kind`` as of ``align_points``.
    """
    found = torch.full_like(truth, torch.nan)
    fitted = valid & points.isfinite().all(-1)
    for one, mask, given, wanted in zip(found, fitted, points, truth, strict=True):
        moved = align_points(given[mask], wanted[mask], kind)
        if moved is not None:
            one[mask] = wanted[mask] - moved
    return found


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


class _Cloud:
    """Points (N, 3) in float64 about their centre: ``spread`` (3, N), which adds up fast."""

    def __init__(self, points: Tensor) -> None:
        self.spread = points.T.double().contiguous()
        self.centre = self.spread.mean(1)
        self.spread -= self.centre[:, None]
        self.moments = self.spread @ self.spread.T

    @property
    def degenerate(self) -> bool:
        variances = torch.linalg.eigvalsh(self.moments)
        return not bool(variances[1] > _FLATTEST * variances[2])


def _similarity(points: _Cloud, targets: _Cloud) -> Tensor:
    u, sizes, vt = torch.linalg.svd(targets.spread @ points.spread.T)
    sign = torch.ones_like(sizes)
    sign[2] = torch.linalg.det(u @ vt).sign()
    rotation = u @ torch.diag(sign) @ vt
    scale = (sizes * sign).sum() / points.moments.trace()
    return from_parts(rotation, targets.centre - scale * rotation @ points.centre, scale)
