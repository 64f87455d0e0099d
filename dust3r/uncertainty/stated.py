"""What a prediction states of its error, as numbers to hold against the error: sigma and tails.

One form for all shapes of region: ``sigma`` is the root of the expected squared error, so that the
ratio r = error / sigma has mean square 1 where the statement is true. In D dimensions (1 for depth,
3 for points) r^2 then follows F(D, infinity) for a Gaussian and (df - 2)/df F(D, df) for a
Student-t with df degrees of freedom.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from scipy import special
from torch import Tensor

from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.uncertainty.families import FAMILIES, Prediction, uncertainty
from dust3r.uncertainty.points import NormalInverseWishart
from dust3r.uncertainty.student_t import MultivariateStudentT

# Dimensions of the error by the region that holds it: an interval of depth, a ball around a point,
# an ellipsoid around it.
DIMENSIONS = {"interval": 1, "ball": 3, "ellipsoid": 3}
DEPTH_SUFFIXES = {"geom": "", "feat": "_feat"}
# Mahalanobis lengths of points, whatever the family: their expected square is their dimension.
ELLIPSOID_SIGMA = sqrt(3)


@dataclass(frozen=True)
class Stated:
    """What one view's prediction states.

    Attributes:
        family: a name of ``dust3r.uncertainty.families.FAMILIES``.
        region: ``'interval'`` for families of depth, ``'ball'`` for those of points and for the
            confidence.
        sigma: (B,H,W), in the unit of the predictions (metres for a metric model): the standard
            deviation of depth, or the root of the expected squared distance of a point. Of the
            confidence 1 / conf, which has no unit until it is calibrated.
        df: (B,H,W) degrees of freedom of a Student-t; None for a Gaussian, and for coordinates
            that have each their own.
    """

    family: str
    region: str
    sigma: Tensor
    df: Tensor | None


def stated(prediction: Prediction, family: str | None = None) -> Stated:
    """What a prediction of one view states; arguments and errors as of ``uncertainty``."""
    said = uncertainty(prediction, family)
    name = said.family
    sigma = said.total if name == "conf" else said.total.sqrt()
    df = None
    if name in DEPTH_SUFFIXES:
        nig = NormalInverseGamma.from_prediction(prediction, DEPTH_SUFFIXES[name])
        df = 2 * nig.alpha[:, 0]
    elif name == "niw":
        df = (NormalInverseWishart.from_prediction(prediction).nu - 2)[:, 0]
    return Stated(name, "interval" if name in DEPTH_SUFFIXES else "ball", sigma, df)


def mahalanobis(prediction: Prediction, points: Tensor, family: str | None = None) -> Tensor:
    """Lengths of the errors of points, whitened by the stated covariance, (B,H,W), no unit.

    Their root mean square is ``ELLIPSOID_SIGMA`` where the covariance is true: give that as the
    sigma of all pixels to calibrate ellipsoids.

    Args:
        prediction: of one view.
        points: true points (B,H,W,3) in the frame and unit of the prediction.
        family: as of ``uncertainty``.

    Raises:
        ValueError: the family has no distribution of points, or the prediction is of another.
    """
    name = uncertainty(prediction, family).family
    read = FAMILIES[name].points
    if read is None:
        having = ", ".join(key for key, one in FAMILIES.items() if one.points is not None)
        raise ValueError(
            f"family {name!r} states no covariance of points, so it has no ellipsoids; give one of "
            f"{having}, or calibrate intervals or balls"
        )
    said = read(prediction)
    if isinstance(said, NormalInverseWishart):
        predictive: MultivariateStudentT = said.predictive()
        residual = (points.to(said.m.dtype) - predictive.loc)[..., None]
        white = torch.linalg.solve_triangular(predictive.scale_tril, residual, upper=False)[..., 0]
        return white.norm(dim=-1) * ((predictive.df - 2) / predictive.df).sqrt()
    white = (points.movedim(-1, 1) - said.mean).square() / said.total
    return white.sum(dim=1).sqrt()


def radial_cdf(ratio: np.ndarray, region: str, df: np.ndarray | None = None) -> np.ndarray:
    """Stated probability that error / sigma is at most ``ratio`` (any shape, from 0)."""
    dim, square = DIMENSIONS[region], np.square(ratio)
    if df is None:
        return special.gammainc(dim / 2, dim * square / 2)
    return special.fdtr(dim, df, square * df / (df - 2))


def radial_quantile(
    level: float | np.ndarray, region: str, df: np.ndarray | None = None
) -> np.ndarray:
    """The ratio error / sigma that is stated to hold with probability ``level``."""
    dim = DIMENSIONS[region]
    if df is None:
        return np.sqrt(2 / dim * special.gammaincinv(dim / 2, level))
    return np.sqrt(special.fdtri(dim, df, level) * (df - 2) / df)


def probability_at_truth(
    errors: np.ndarray, sigmas: np.ndarray, region: str, df: np.ndarray | None = None
) -> np.ndarray:
    """Stated probability of a depth at most the true one, or of an error at most this long.

    Uniform over pixels where the statement is true (the probability integral transform).

    Args:
        errors: prediction less truth for intervals, else lengths.
        sigmas, df: what was stated.
    """
    radial = radial_cdf(np.abs(errors) / sigmas, region, df)
    return radial if region != "interval" else 0.5 - 0.5 * np.sign(errors) * radial
