"""Evidential distributions: a network's raw channels as probability distributions."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.distributions import StudentT
from torch.nn import functional as F

EPSILON = 1e-6
HEAD_OF_SUFFIX = {"": "dpt_uq", "_feat": "dpt_uq_feat"}


@dataclass(frozen=True)
class NormalInverseGamma:
    """Evidence about one scalar per pixel (Amini et al., Deep Evidential Regression, 2020).

    The scalar is Gaussian with unknown mean and variance, whose joint prior is NIG(gamma, nu,
    alpha, beta) (their eq. 4 and 5). All four have one shape, (B,1,H,W) for depth maps, (B,3,H,W)
    for the coordinates of points, each a scalar for itself, with nu and beta above 0 and alpha
    above 1. Half precisions are widened to float32 on entry, because alpha is told from 1 by
    ``EPSILON``, which they cannot represent; float64 stays.

    gamma has the unit of the scalar, beta and the variances its square; nu and alpha count virtual
    observations.
    """

    gamma: Tensor
    nu: Tensor
    alpha: Tensor
    beta: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, widened(getattr(self, field.name)))

    @classmethod
    def from_raw(cls, raw: Tensor) -> "NormalInverseGamma":
        """From a head's channels (B,4,H,W), in the order gamma, nu, alpha, beta.

        Softplus, plus ``EPSILON``, makes the last three positive; alpha gets 1 more, so that the
        variance exists.

        Raises:
            ValueError: not four channels.
        """
        if raw.ndim < 2 or raw.shape[1] != 4:
            raise ValueError(
                f"an evidential head gives (B, 4, H, W), gamma, nu, alpha and beta; these are "
                f"{tuple(raw.shape)}"
            )
        gamma, evidence = widened(raw).split((1, 3), dim=1)
        return cls.from_evidence(gamma, evidence)

    @classmethod
    def from_evidence(cls, mean: Tensor, raw: Tensor) -> "NormalInverseGamma":
        """About each of C channels of ``mean`` (B,C,H,W), from a head's channels (B,3C,H,W).

        First nu of every channel, then alpha, then beta, activated as in ``from_raw``.

        Raises:
            ValueError: not three channels of evidence for each of the mean.
        """
        if raw.shape[1] != 3 * mean.shape[1]:
            raise ValueError(
                f"evidence about a mean {tuple(mean.shape)} has three channels for each of its "
                f"own, nu, alpha and beta; this one is {tuple(raw.shape)}"
            )
        nu, alpha, beta = F.softplus(widened(raw)).chunk(3, dim=1)
        # The order of the additions, as published, decides the last digits of alpha - 1.
        return cls(widened(mean), nu + EPSILON, alpha + 1 + EPSILON, beta + EPSILON)

    @classmethod
    def from_prediction(cls, pred: Mapping[str, Tensor], suffix: str = "") -> "NormalInverseGamma":
        """From the maps ``depth_gamma`` to ``depth_beta`` of a prediction, each (B,1,H,W).

        Args:
            pred: a prediction of one view.
            suffix: "" for GeoUQ, "_feat" for FeatUQ.

        Raises:
            ValueError: the model that made ``pred`` has no such head.
        """
        names = [f"depth_{field.name}{suffix}" for field in fields(cls)]
        missing = [name for name in names if name not in pred]
        if missing:
            head = HEAD_OF_SUFFIX.get(suffix, "one with these outputs")
            raise ValueError(
                f"the prediction has no {', '.join(missing)}; it has {', '.join(pred)}. Use a "
                f"model whose head_type is {head}"
            )
        return cls(*(pred[name] for name in names))

    def predictive(self) -> StudentT:
        """Distribution of the scalar with mean and variance integrated out (their eq. 7).

        A Student-t with 2 alpha degrees of freedom. Its arguments go unchecked, since a check makes
        the host wait for the device and turns the NaN of a diverging run into an exception.
        """
        scale = (self.beta * (1 + self.nu) / (self.nu * self.alpha)).sqrt()
        return StudentT(2 * self.alpha, self.gamma, scale, validate_args=False)

    def nll(self, y: Tensor) -> Tensor:
        """Negative log-likelihood of ``y`` per pixel, same shape (their eq. 8).

        Equals ``-predictive().log_prob(y)``, rearranged so that float32 keeps its digits: with
        w = 2 beta (1 + nu) and x = nu (y - gamma)^2 / w it is
        1/2 log(pi w / nu) + (alpha + 1/2) log(1 + x) - log(Gamma(alpha + 1/2) / Gamma(alpha)),
        where terms that grow with alpha no longer cancel.
        """
        y = self._as_target(y)
        w = 2 * self.beta * (1 + self.nu)
        x = self.nu * (y - self.gamma).square() / w
        return (
            0.5 * (torch.pi * w / self.nu).log()
            + (self.alpha + 0.5) * x.log1p()
            - log_gamma_half_step(self.alpha)
        )

    def evidence_penalty(self, y: Tensor) -> Tensor:
        """|y - gamma| (2 nu + alpha) per pixel: evidence where the mean is wrong (their eq. 9)."""
        return (self._as_target(y) - self.gamma).abs() * (2 * self.nu + self.alpha)

    @property
    def mean(self) -> Tensor:
        """Predicted scalar, gamma."""
        return self.gamma

    @property
    def variance(self) -> Tensor:
        """Predictive variance, beta (1 + nu) / (nu (alpha - 1)), the published ``depth_var``.

        As there, ``EPSILON`` bounds alpha - 1 from below and is added to the denominator: where
        nu or alpha - 1 are about as small, this is less than aleatoric + epistemic.
        """
        return self.beta * (1 + self.nu) / (self.nu * self._surplus() + EPSILON)

    @property
    def total(self) -> Tensor:
        """``variance``, as every distribution here calls it."""
        return self.variance

    @property
    def aleatoric(self) -> Tensor:
        """Expected variance of the data, beta / (alpha - 1)."""
        return self.beta / self._surplus()

    @property
    def epistemic(self) -> Tensor:
        """Variance of the mean, beta / (nu (alpha - 1))."""
        return self.beta / (self.nu * self._surplus())

    def detach(self) -> "NormalInverseGamma":
        """The same numbers without their graph."""
        return NormalInverseGamma(*(getattr(self, f.name).detach() for f in fields(self)))

    def _surplus(self) -> Tensor:
        return (self.alpha - 1).clamp(min=EPSILON)

    def _as_target(self, y: Tensor) -> Tensor:
        if y.shape != self.gamma.shape:
            raise ValueError(
                f"the target has shape {tuple(y.shape)}, the prediction {tuple(self.gamma.shape)}; "
                "they must be equal (a depthmap (B, H, W) needs a channel axis: depth[:, None])"
            )
        return y.to(self.gamma.dtype)


def widened(x: Tensor) -> Tensor:
    """``x`` in float32 where it is of a half precision; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def log_gamma_half_step(alpha: Tensor) -> Tensor:
    """log Gamma(alpha + 1/2) - log Gamma(alpha) for alpha > 0.

    As a difference of two ``lgamma`` it loses every digit in float32 for large alpha. Instead,
    Gamma(z + 1) = z Gamma(z) takes alpha to z = alpha + 6, where five terms of the expansion of
    Gamma(z + 1/2) / Gamma(z) in 1/z (Tricomi and Erdelyi, 1951) are exact to 1e-8.
    """
    z = alpha + _RECURRENCE_STEPS
    u = 1 / z
    series = torch.zeros_like(u)
    for coefficient in reversed(_HALF_STEP_SERIES):
        series = (series + coefficient) * u
    back = sum(torch.log1p(0.5 / (alpha + step)) for step in range(_RECURRENCE_STEPS))
    return 0.5 * z.log() + series.log1p() - back


_RECURRENCE_STEPS = 6
_HALF_STEP_SERIES = (-1 / 8, 1 / 128, 5 / 1024, -21 / 32768, -399 / 262144)
