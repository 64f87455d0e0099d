"""Distributions of 3-D points: a head's raw channels as what is known of each pixel's point.

All are in the frame and unit of the pointmap they belong to: camera 1's, metres for a metric model.
Maps are channels first; variances have the unit squared. Where the three coordinates are
independent, ``NormalInverseGamma`` with (B,3,H,W) parameters is the evidential one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from dust3r.uncertainty.evidential import (
    EPSILON,
    NormalInverseGamma,
    log_gamma_half_step,
    widened,
)
from dust3r.uncertainty.student_t import MultivariateStudentT

# A variance exists above this: Psi / (nu - 4).
LEAST_NU = 4.0
# exp of these is a variance that float32 holds, and so is its square.
LOG_VARIANCE_LIMITS = (-20.0, 20.0)

# Places of the six stored values in L, and those of them that are on its diagonal.
_ROWS, _COLUMNS = (0, 1, 1, 2, 2, 2), (0, 0, 1, 0, 1, 2)
_DIAGONAL = (0, 2, 5)
# Beyond this a float32's square overflows.
_FAR = 1e15


@dataclass(frozen=True)
class NormalInverseWishart:
    """Evidence about a point, with a full covariance (Trust3R, 2026).

    The point is Gaussian with unknown mean and covariance, whose joint prior is
    NIW(m, kappa, Psi, nu) with Psi = L L^T.

    Attributes:
        m: (B,3,H,W), the mean.
        kappa: (B,1,H,W), above 0, virtual observations of the mean.
        nu: (B,1,H,W), above 4.
        L: (B,6,H,W), lower triangular, in the order 00 10 11 20 21 22, its diagonal above 0; in
            the unit of the points.
    """

    m: Tensor
    kappa: Tensor
    nu: Tensor
    L: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, widened(getattr(self, field.name)))

    @classmethod
    def from_raw(cls, mean: Tensor, raw: Tensor) -> "NormalInverseWishart":
        """From points (B,3,H,W) and a head's channels (B,8,H,W): kappa, nu, the six of L.

        Softplus plus ``EPSILON`` makes kappa, nu - 4 and L's diagonal positive.

        Raises:
            ValueError: other numbers of channels.
        """
        if mean.shape[1] != 3 or raw.shape[1] != 8:
            raise ValueError(
                "a normal-inverse-Wishart head takes points (B, 3, H, W) and gives (B, 8, H, W), "
                f"kappa, nu and six of L; these are {tuple(mean.shape)} and {tuple(raw.shape)}"
            )
        raw = widened(raw)
        kappa, nu = (F.softplus(channel) for channel in raw[:, :2].split(1, dim=1))
        lower = list(raw[:, 2:].split(1, dim=1))
        for place in _DIAGONAL:
            lower[place] = F.softplus(lower[place]) + EPSILON
        return cls(mean, kappa + EPSILON, nu + LEAST_NU + EPSILON, torch.cat(lower, dim=1))

    @classmethod
    def from_prediction(cls, pred: Mapping[str, Tensor]) -> "NormalInverseWishart":
        """From the maps ``xyz_niw_m``, ``_kappa``, ``_nu`` and ``_L`` of a prediction.

        Raises:
            ValueError: the model that made ``pred`` has no such head.
        """
        names = [f"xyz_niw_{field.name}" for field in fields(cls)]
        return cls(*maps_of(pred, names, "catmlp+dpt+xyz_niw_dpt"))

    def predictive(self) -> MultivariateStudentT:
        """Distribution of the point, mean and covariance integrated out, over batches (B,H,W).

        A Student-t with nu - 2 degrees of freedom whose last axis are the coordinates, so that its
        ``log_prob`` takes points (B,H,W,3). Its arguments go unchecked, as the depth's do.
        """
        lower = self.L.new_zeros(*self.m.shape[:1], *self.m.shape[2:], 3, 3)
        lower[..., _ROWS, _COLUMNS] = (self.L * self.scale.sqrt()).movedim(1, -1)
        df = (self.nu - 2)[:, 0]
        return MultivariateStudentT(df, self.m.movedim(1, -1), lower, validate_args=False)

    def nll(self, y: Tensor) -> Tensor:
        """Negative log-likelihood of points ``y`` (B,3,H,W): (B,1,H,W), of all three coordinates.

        Equals ``-predictive().log_prob``, rearranged so that float32 keeps its digits where nu is
        large: with z = L^-1 (y - m) it is 3/2 log(pi (kappa + 1) / kappa) + log|L|
        + (nu + 1)/2 log(1 + |z|^2 kappa / (kappa + 1)) - log(Gamma((nu + 1)/2) / Gamma(nu/2 - 1)).
        """
        z = self._whitened(y)
        inflation = (self.kappa + 1) / self.kappa
        half = self.nu / 2 - 1
        log_gammas = half.log() + log_gamma_half_step(half + 1)
        log_det = self.L[:, _DIAGONAL].log().sum(dim=1, keepdim=True)
        distance = _log1p_square(z / inflation.sqrt())
        return (
            1.5 * (math.pi * inflation).log()
            + log_det
            + 0.5 * (self.nu + 1) * distance
            - log_gammas
        )

    def evidence_penalty(self, y: Tensor) -> Tensor:
        """|L^-1 (y - m)| (kappa + nu) per pixel, (B,1,H,W): evidence where the mean is wrong."""
        z = self._whitened(y)
        # Scaled by the largest, so that squares do not overflow.
        largest = z.detach().abs().amax(dim=1, keepdim=True).clamp(min=EPSILON)
        length = largest * torch.linalg.vector_norm(z / largest, dim=1, keepdim=True)
        return length * (self.kappa + self.nu)

    @property
    def mean(self) -> Tensor:
        """Predicted points, m."""
        return self.m

    @property
    def psi_diagonal(self) -> Tensor:
        """Diagonal of Psi = L L^T, (B,3,H,W)."""
        square = self.L.square()
        rows = square.split((1, 2, 3), dim=1)
        return torch.cat([row.sum(dim=1, keepdim=True) for row in rows], dim=1)

    @property
    def scale(self) -> Tensor:
        """What Psi is multiplied by to be the predictive's scale matrix, (B,1,H,W)."""
        return (self.kappa + 1) / (self.kappa * (self.nu - 2))

    @property
    def spread(self) -> Tensor:
        """Diagonal of the predictive's scale matrix, (B,3,H,W), the published ``xyz_var``.

        Finite however heavy the tails are, unlike the variance, which is (nu - 2)/(nu - 4) times
        as much.
        """
        return self.psi_diagonal * self.scale

    @property
    def total(self) -> Tensor:
        """Predictive variance of each coordinate, (B,3,H,W): aleatoric + epistemic."""
        return self.aleatoric * (1 + 1 / self.kappa)

    @property
    def aleatoric(self) -> Tensor:
        """Diagonal of the expected covariance of the data, Psi / (nu - 4), (B,3,H,W)."""
        return self.psi_diagonal / (self.nu - LEAST_NU).clamp(min=EPSILON)

    @property
    def epistemic(self) -> Tensor:
        """Diagonal of the covariance of the mean, Psi / (kappa (nu - 4)), (B,3,H,W)."""
        return self.aleatoric / self.kappa

    def _whitened(self, y: Tensor) -> Tensor:
        """L^-1 (y - m), (B,3,H,W), by forward substitution."""
        x0, x1, x2 = (as_target(y, self.m) - self.m).split(1, dim=1)
        l00, l10, l11, l20, l21, l22 = self.L.split(1, dim=1)
        z0 = x0 / l00
        z1 = (x1 - l10 * z0) / l11
        z2 = (x2 - l20 * z0 - l21 * z1) / l22
        return torch.cat([z0, z1, z2], dim=1)


@dataclass(frozen=True)
class PointGaussian:
    """A Gaussian of each coordinate with a variance of its own (Kendall and Gal, 2017, eq. 5).

    Attributes:
        mean: (B,3,H,W).
        log_variance: (B,3,H,W), natural logarithm.
    """

    mean: Tensor
    log_variance: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, widened(getattr(self, field.name)))

    @classmethod
    def from_raw(cls, mean: Tensor, raw: Tensor) -> "PointGaussian":
        """From points and a head's channels, both (B,3,H,W).

        Log variances are held within ``LOG_VARIANCE_LIMITS``, 45 micrometres to 22 km for points
        in metres.

        Raises:
            ValueError: their shapes differ, or are others.
        """
        if mean.shape[1] != 3 or raw.shape != mean.shape:
            raise ValueError(
                "a heteroscedastic head takes points (B, 3, H, W) and gives log variances of that "
                f"shape; these are {tuple(mean.shape)} and {tuple(raw.shape)}"
            )
        return cls(mean, widened(raw).clamp(*LOG_VARIANCE_LIMITS))

    @classmethod
    def from_prediction(cls, pred: Mapping[str, Tensor]) -> "PointGaussian":
        """From the maps ``xyz_mu`` and ``xyz_logvar`` of a prediction.

        Raises:
            ValueError: the model that made ``pred`` has no such head.
        """
        return cls(*maps_of(pred, ["xyz_mu", "xyz_logvar"], "catmlp+dpt+xyz_hetero_dpt"))

    def predictive(self) -> Independent:
        """Distribution of the point over batches (B,H,W); ``log_prob`` takes (B,H,W,3)."""
        deviation = (0.5 * self.log_variance).exp().movedim(1, -1)
        normal = Normal(self.mean.movedim(1, -1), deviation, validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def nll(self, y: Tensor, beta: float = 0.0) -> Tensor:
        """Negative log-likelihood of points ``y`` (B,3,H,W): (B,1,H,W), of all three coordinates.

        Equals ``-predictive().log_prob``.

        Args:
            beta: weigh each coordinate by its variance to this power, without a gradient (Seitzer
                et al., On the Pitfalls of Heteroscedastic Uncertainty Estimation, ICLR 2022). The
                likeliest variances stay; the mean's gradient, error / sigma^2, is that of the
                squared error with 1, and in between of a length that noise leaves alone with 0.5.
        """
        square = (as_target(y, self.mean) - self.mean).square() * (-self.log_variance).exp()
        each = 0.5 * (square + self.log_variance + math.log(2 * math.pi))
        if beta:
            each = each * (beta * self.log_variance.detach()).exp()
        return each.sum(dim=1, keepdim=True)

    @property
    def total(self) -> Tensor:
        """Variance of each coordinate, (B,3,H,W)."""
        return self.log_variance.exp()

    @property
    def aleatoric(self) -> Tensor:
        """The whole variance: a Gaussian states nothing about its own parameters."""
        return self.total

    @property
    def epistemic(self) -> None:
        """None: a Gaussian states nothing about its own parameters."""


PointDistribution = NormalInverseGamma | NormalInverseWishart | PointGaussian


def nig_of_points(pred: Mapping[str, Tensor]) -> NormalInverseGamma:
    """The evidence ``xyz_gamma`` to ``xyz_beta`` of a prediction, each (B,3,H,W).

    Raises:
        ValueError: the model that made ``pred`` has no such head.
    """
    names = [f"xyz_{field.name}" for field in fields(NormalInverseGamma)]
    return NormalInverseGamma(*maps_of(pred, names, "catmlp+dpt+xyz_evi_dpt"))


def evidence_of_points(
    pred: Mapping[str, Tensor],
) -> NormalInverseGamma | NormalInverseWishart:
    """Whichever evidence about its points a prediction has.

    Raises:
        ValueError: it has none.
    """
    if "xyz_niw_L" in pred:
        return NormalInverseWishart.from_prediction(pred)
    if "xyz_gamma" in pred:
        return nig_of_points(pred)
    raise ValueError(
        f"the prediction has no evidence about its points; it has {', '.join(pred)}. Use a model "
        "whose head_type is catmlp+dpt+xyz_niw_dpt or catmlp+dpt+xyz_evi_dpt"
    )


def maps_of(pred: Mapping[str, Tensor], names: list[str], head_type: str) -> list[Tensor]:
    """``pred[name]`` of each name.

    Raises:
        ValueError: one is missing; the message names the ``head_type`` that gives it.
    """
    missing = [name for name in names if name not in pred]
    if missing:
        raise ValueError(
            f"the prediction has no {', '.join(missing)}; it has {', '.join(pred)}. Use a model "
            f"whose head_type is {head_type}"
        )
    return [pred[name] for name in names]


def as_target(y: Tensor, mean: Tensor) -> Tensor:
    """Points ``y`` in the type of ``mean``; ValueError where their shapes differ."""
    if y.shape != mean.shape:
        raise ValueError(
            f"the target has shape {tuple(y.shape)}, the prediction {tuple(mean.shape)}; they must "
            "be equal (a pointmap (B, H, W, 3) needs its coordinates first: points.movedim(-1, 1))"
        )
    return y.to(mean.dtype)


def _log1p_square(z: Tensor) -> Tensor:
    """log(1 + |z|^2) over dimension 1, kept; exact near 0, finite where the square is not."""
    far = z.detach().abs().amax(dim=1, keepdim=True) > _FAR
    near = z.where(~far, 0.0).square().sum(dim=1, keepdim=True).log1p()
    distant = z.where(far, 1.0)
    largest = distant.detach().abs().amax(dim=1, keepdim=True)
    square = (distant / largest).square().sum(dim=1, keepdim=True)
    return torch.where(far, 2 * largest.log() + square.log(), near)
