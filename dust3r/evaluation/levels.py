"""How much probability a distribution states for what is nearer to its centre than the truth is.

Were all stated probabilities right, these levels would be uniform between 0 and 1; calibration
error is how far their histogram is from that.
"""

from functools import cache

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.distributions import StudentT
from torch.nn import functional as F

from dust3r.uncertainty.points import NormalInverseWishart, PointDistribution

LEVELS = 100

_BY_FREEDOM, _BY_DISTANCE = 65, 1025
# Five times the largest error of the table.
_NEAR = 4e-5


def levels_of(said: PointDistribution, truth: Tensor, mask: Tensor) -> np.ndarray:
    """Levels (n,), or (n * C,) where coordinates are distributed by themselves, of masked pixels.

    Within 4e-5, and on the right side of every multiple of 1 / ``LEVELS``.

    Args:
        said: distributions over maps (B, C, H, W).
        truth: (B, H, W, C).
        mask: (B, H, W) bool.
    """
    truth = truth[mask].double()
    predictive = said.predictive()
    if isinstance(said, NormalInverseWishart):
        lower, location = predictive.scale_tril[mask].double(), predictive.loc[mask].double()
        white = torch.linalg.solve_triangular(lower, (truth - location)[..., None], upper=False)
        distance = white.square().sum((-2, -1)).cpu().numpy()
        # The squared distance over the dimension has an F distribution.
        return special.fdtr(3.0, predictive.df[mask].double().cpu().numpy(), distance / 3)
    if isinstance(predictive, StudentT):
        freedom, location, scale = (
            values.movedim(1, -1)[mask].double()
            for values in torch.broadcast_tensors(predictive.df, predictive.loc, predictive.scale)
        )
        distance = ((truth - location) / scale).abs().flatten()
        return student_levels(freedom.flatten().cpu(), distance.cpu())
    base = predictive.base_dist
    white = (truth - base.loc[mask].double()) / base.scale[mask].double()
    return special.gammainc(1.5, (white.square().sum(-1) / 2).cpu().numpy())


def student_levels(freedom: Tensor, distance: Tensor) -> np.ndarray:
    """P(|t| < distance) (n,) of Student's t with these degrees of freedom, both (n,) float64.

    The distribution function would cost more than any other measure of a pixel, and a histogram
    does not need its digits: a table gives it within 1e-5, and the function itself those values
    that are as near as that to a multiple of 1 / ``LEVELS``.
    """
    # The table's axes, which run from -1 to 1: 2 / freedom and d / (1 + d).
    place = torch.stack([2 * distance / (1 + distance) - 1, 4 / freedom - 1], -1).float()
    found = F.grid_sample(
        _table(), place[None, None], "bilinear", "border", align_corners=True
    ).flatten()
    levels = found.double().numpy()
    near = np.abs(levels * LEVELS - np.rint(levels * LEVELS)) <= _NEAR * LEVELS
    freedom, distance = freedom.numpy(), distance.numpy()
    # Beyond the table, and what is not a number, too.
    near |= ~((freedom >= 2) & (distance < np.inf))
    levels[near] = 2 * special.stdtr(freedom[near], distance[near]) - 1
    return levels


@cache
def _table() -> Tensor:
    share = np.linspace(0, 1, _BY_DISTANCE)[:-1]
    freedom = 2 / np.linspace(0, 1, _BY_FREEDOM)[1:, None]
    levels = 2 * special.stdtr(freedom, share / (1 - share)) - 1
    levels = np.concatenate([special.erf(share / (1 - share) / np.sqrt(2))[None], levels])
    levels = np.concatenate([levels, np.ones((_BY_FREEDOM, 1))], axis=1)
    return torch.from_numpy(levels).float()[None, None]
