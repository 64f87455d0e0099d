"""How large a masked cloud of points is, and what takes one cloud to the scale of another.

Clouds are (B, N, 3), of which the points where ``valid`` (B, N) count; lengths are (B, 1, 1), so
that they divide the cloud they belong to.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SHORTEST = 1e-8

_STATISTICS = ("avg_dis", "avg_log1p", "median_dis", "median_log1p")
_SHORT_NAMES = {"avg": "avg_dis", "median": "median_dis"}
_FIT_STEPS = 10


@dataclass(frozen=True)
class NormMode:
    """What is taken as the typical distance of a cloud from the origin, and of which clouds.

    Attributes:
        statistic: ``avg_dis``, ``median_dis``, ``avg_log1p`` or ``median_log1p``.
        keeps_metric: whether a cloud in metres is measured by the truth's distance alone (a leading
            ``?`` in the name), so that a prediction in other units is wrong.
    """

    statistic: str
    keeps_metric: bool

    @classmethod
    def parse(cls, name: str | None) -> "NormMode | None":
        """``avg_dis`` and the like, ``avg`` and ``median`` for short, all with ``?`` or without.

        None and False give None: no normalisation.

        Raises:
            ValueError: it is none of these.
        """
        if name is None or name is False:
            return None
        text = str(name)
        statistic = text.removeprefix("?")
        statistic = _SHORT_NAMES.get(statistic, statistic)
        if statistic not in _STATISTICS:
            raise ValueError(
                f"norm_mode is {name!r}; use one of {', '.join(_STATISTICS)}, or None; with '?' in "
                "front, '?avg_dis', predictions of metric data keep their scale"
            )
        return cls(statistic, text.startswith("?"))

    def length(self, points: Tensor, valid: Tensor) -> Tensor:
        """Typical distance of the valid points from the origin."""
        statistic, measure = self.statistic.split("_")
        distance = torch.linalg.vector_norm(points, dim=-1)
        distance = distance.log1p() if measure == "log1p" else distance
        if statistic == "median":
            typical = masked_median(distance[..., None], valid)[..., None]
        else:
            total = torch.where(valid, distance, 0.0).sum(dim=1)
            typical = (total / valid.sum(dim=1).clamp(min=1))[:, None, None]
        typical = typical.expm1() if measure == "log1p" else typical
        return typical.clamp(min=SHORTEST)

    def __str__(self) -> str:
        return ("?" if self.keeps_metric else "") + self.statistic


def masked_median(points: Tensor, valid: Tensor) -> Tensor:
    """Lower median per sample and channel of (B,N,C) where ``valid`` (B,N); 0 when nowhere.

    The lower one of the two middle values, as ``torch.median``; (B,C).
    """
    median = points.masked_fill(~valid[..., None], torch.nan).nanmedian(dim=1).values
    return torch.where(valid.any(dim=1, keepdim=True), median, 0.0)


def spread(points: Tensor, valid: Tensor) -> Tensor:
    """Median distance of the valid points from their coordinate-wise median."""
    from_centre = points - masked_median(points, valid)[:, None]
    distance = torch.linalg.vector_norm(from_centre, dim=-1, keepdim=True)
    return masked_median(distance, valid)[..., None]


def log_lengths(points: Tensor) -> Tensor:
    """Points in their directions, a distance d from the origin becoming log(1 + d)."""
    distance = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
    return points * (distance.log1p() / distance.clamp(min=SHORTEST))


@torch.no_grad()
def fitted_scale(points: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Factor that brings ``points`` closest to ``target`` by mean distance (Weiszfeld's algorithm).

    Carries no gradient; at least ``SHORTEST``. 1 where no point is valid.
    """
    along = (points * target).sum(-1)
    square = (points * points).sum(-1)
    weight = valid.to(points.dtype)
    scale = _ratio(weight * along, weight * square)
    for _ in range(_FIT_STEPS):
        residual = torch.linalg.vector_norm(scale * points - target, dim=-1)
        reweighted = weight / residual.clamp(min=SHORTEST)
        scale = _ratio(reweighted * along, reweighted * square)
    return torch.where(valid.any(1)[:, None, None], scale, 1.0)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    scale = above.sum(1) / below.sum(1).clamp(min=SHORTEST)
    return scale.clamp(min=SHORTEST)[:, None, None]
