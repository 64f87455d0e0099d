"""The multivariate Student-t distribution, which ``torch.distributions`` lacks."""

import math

import torch
from torch import Size, Tensor
from torch.distributions import Chi2, Distribution, constraints


class MultivariateStudentT(Distribution):
    """Student-t over vectors of D entries, with a full scale matrix.

    Its density at y, with delta^2 = (y - loc)^T Sigma^-1 (y - loc), is proportional to
    |Sigma|^-1/2 (1 + delta^2 / df)^(-(df + D) / 2) (Kotz and Nadarajah, 2004, eq. 1.1).

    Args:
        df: degrees of freedom, above 0, of any batch shape.
        loc: (..., D).
        scale_tril: (..., D, D), lower triangular with a positive diagonal; Sigma is
            ``scale_tril @ scale_tril.mT``.
        validate_args: as of every distribution; a check makes the host wait for the device.
    """

    arg_constraints = {
        "df": constraints.positive,
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, df: Tensor, loc: Tensor, scale_tril: Tensor, validate_args: bool | None = None
    ):
        batch = torch.broadcast_shapes(df.shape, loc.shape[:-1], scale_tril.shape[:-2])
        dim = loc.shape[-1]
        self.df = df.expand(batch)
        self.loc = loc.expand(*batch, dim)
        self.scale_tril = scale_tril.expand(*batch, dim, dim)
        super().__init__(batch, Size([dim]), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """(..., D); NaN where df <= 1, as it does not exist there."""
        return self.loc.where((self.df > 1)[..., None], torch.nan)

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Diagonal of the covariance, (..., D)."""
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1)

    @property
    def covariance_matrix(self) -> Tensor:
        """Sigma df / (df - 2), (..., D, D); infinite where df <= 2, NaN where df <= 1."""
        df = self.df[..., None, None]
        scale = self.scale_tril @ self.scale_tril.mT
        exists = scale * (df / (df - 2).where(df > 2, 1.0))
        undefined = torch.where(df > 1, torch.inf, torch.nan)
        return exists.where(df > 2, undefined)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value`` (..., D): (...)."""
        if self._validate_args:
            self._validate_sample(value)
        dim = self.event_shape[0]
        residual = torch.linalg.solve_triangular(
            self.scale_tril, (value - self.loc)[..., None], upper=False
        )[..., 0]
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (
            torch.lgamma((self.df + dim) / 2)
            - torch.lgamma(self.df / 2)
            - 0.5 * dim * (self.df * math.pi).log()
            - log_det
            - 0.5 * (self.df + dim) * (residual.square().sum(-1) / self.df).log1p()
        )

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008  (torch's signature)
        """A Gaussian sample over the root of a chi-square one, (*sample_shape, ..., D)."""
        shape = self._extended_shape(sample_shape)
        gaussian = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        spread = (self.df / Chi2(self.df, validate_args=False).rsample(sample_shape)).sqrt()
        return self.loc + spread[..., None] * (self.scale_tril @ gaussian[..., None])[..., 0]

    def expand(
        self, batch_shape: Size, _instance: "MultivariateStudentT | None" = None
    ) -> "MultivariateStudentT":
        """The same distribution over a larger batch."""
        batch_shape, dim = Size(batch_shape), self.event_shape[0]
        return type(self)(
            self.df.expand(batch_shape),
            self.loc.expand(*batch_shape, dim),
            self.scale_tril.expand(*batch_shape, dim, dim),
            validate_args=False,
        )
